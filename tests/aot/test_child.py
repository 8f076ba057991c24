"""What a compiler's process tells is what is read, and what each kind of it means."""

from __future__ import annotations

import pytest

from wam_jax.aot import child

NO_ROOM = 'RESOURCE_EXHAUSTED: Ran out of memory on HBM'


class Lowered:
  """A program whose compilation fails."""

  def __init__(self, why):
    self.why = why

  def compile(self, compiler_options):
    raise RuntimeError(self.why)


def test_what_does_not_fit_is_an_answer_and_another_failure_an_error(tmp_path):
  known = {'mesh': {'tensor': 4}}
  assert child.compile(Lowered(NO_ROOM), tmp_path, known) is None
  assert child.read_answer(tmp_path, 0) == known | {'shortage': NO_ROOM}
  assert child.compile(Lowered('INTERNAL: no such kernel'), tmp_path, known) is None
  with pytest.raises(RuntimeError, match='The compiler failed: INTERNAL: no such kernel'):
    child.read_answer(tmp_path, 0)


def test_a_mistake_is_that_of_who_asked(tmp_path):
  child.tell(tmp_path, mistake='batch_size=3 must be even')
  with pytest.raises(ValueError, match='batch_size=3 must be even'):
    child.read_answer(tmp_path, 0)


def test_a_process_that_tells_nothing_is_shown_by_its_log(tmp_path):
  with child.start('wam_jax.no_such_module', {'config': {}}, tmp_path, {}) as process:
    code = process.wait(timeout=60)
  assert child.read_request(tmp_path) == {'config': {}}
  with pytest.raises(RuntimeError, match='(?s)ended with code 1 and no answer:.*no_such_module'):
    child.read_answer(tmp_path, code)
