"""A compiler in a process of its own: it is asked and answers by files of one directory.

Owns these files, the log and the process; what is compiled is of `compiler` and `control`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def start(
  module: str, request: Mapping[str, Any], directory: pathlib.Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen]:
  """`python -m MODULE DIRECTORY`, which finds the request there; it has ended when this is left."""
  (directory / 'request.json').write_text(json.dumps(request))
  with open(directory / 'log.txt', 'wb') as log:
    child = subprocess.Popen(
      [sys.executable, '-m', module, str(directory)],
      env=os.environ | environment,
      stdout=log,
      stderr=log,
      stdin=subprocess.DEVNULL,
    )
    try:
      yield child
    finally:
      # It may be in the middle of machine code that nobody asked for.
      child.kill()
      child.wait()


def read_answer(directory: pathlib.Path, code: int) -> dict[str, Any]:
  """What the process told, which ended with this code.

  Raises:
    ValueError: it told of a mistake in what it was asked.
    RuntimeError: it told nothing, or that the compiler failed for another reason than memory.
  """
  path = directory / 'answer.json'
  if not path.exists():
    raise RuntimeError(f'The compiler ended with code {code} and no answer:\n{read_log(directory)}')
  answer = json.loads(path.read_text())
  if mistake := answer.pop('mistake', None):
    raise ValueError(mistake)
  if failure := answer.pop('failure', None):
    raise RuntimeError(f'The compiler failed: {failure}')
  return answer


def read_log(directory: pathlib.Path) -> str:
  """The end of what the process printed."""
  return (directory / 'log.txt').read_text(errors='replace')[-2000:]


# What the process itself does.


def read_request(directory: pathlib.Path) -> dict[str, Any]:
  return json.loads((directory / 'request.json').read_text())


def tell(directory: pathlib.Path, **answer: Any) -> None:
  """Takes the place of what was told before."""
  (directory / 'answer.json').write_text(json.dumps(answer))


def compile(
  lowered: Any,
  directory: pathlib.Path,
  known: Mapping[str, Any],
  options: Mapping[str, Any] | None = None,
) -> Any | None:
  """The compiled program; None where there is none, which is told with what is `known`: as
  'shortage' where it does not fit the memory of a device, else as 'failure'.
  """
  try:
    return lowered.compile(compiler_options=options)
  except RuntimeError as e:
    if 'RESOURCE_EXHAUSTED' in str(e):
      tell(directory, **known, shortage=str(e))
    else:
      tell(directory, **known, failure=str(e)[:4000])
    return None


def count_bytes(compiled: Any) -> dict[str, int]:
  """Bytes of a device by kind, as the finished program states them."""
  sizes = compiled.memory_analysis()
  kinds = ('argument', 'output', 'alias', 'temp', 'generated_code')
  return {kind: int(getattr(sizes, f'{kind}_size_in_bytes')) for kind in kinds}
