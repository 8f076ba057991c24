"""An official checkpoint inspected, imported, trained on DROID episodes, evaluated and given back,
by commands.
"""

from __future__ import annotations

import functools
import json
import pathlib

import pytest
import sentencepiece

from tests import programs
from tests.data import published
from tests.interop import tiny

run = functools.partial(programs.output, timeout=400)


def write_vocabulary(path: pathlib.Path) -> None:
  """A sentencepiece model with UMT5's special ids, smaller than the tiny text encoder's table."""
  text = path.parent / 'text.txt'
  text.write_text('push it\na robot view\n' * 20)
  sentencepiece.SentencePieceTrainer.Train(
    input=str(text),
    model_prefix=str(path.with_suffix('')),
    vocab_size=30,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
  )


@pytest.mark.slow
def test_there_and_back(tmp_path):
  weights = tiny.write_dreamzero(tmp_path / 'official')
  write_vocabulary(tmp_path / 'spiece.model')
  dataset = published.write(tmp_path / 'data', 'droid', [100, 90])
  imported = tmp_path / 'imported'
  tuned = tmp_path / 'tuned'

  assert 'dreamzero' in run('wam_jax.convert', 'inspect', f'--source={tmp_path / "official"}')
  run(
    'wam_jax.convert',
    'import',
    f'--source={tmp_path / "official"}',
    f'--output={imported}',
    f'--tokenizer={tmp_path / "spiece.model"}',
  )
  flags = [
    f'--config=tests/interop/imported_config.py:{imported}',
    f'--workdir={tuned}',
    f'--config.data.mixture.droid.path={dataset}',
    f'--config.model.text.tokenizer={tmp_path / "spiece.model"}',
  ]
  said = run('wam_jax.train', *flags)
  assert 'weights from step 0' in said
  assert "other rules than they were trained by: config.flow.action_mean='real' ('pad" in said
  lines = [json.loads(line) for line in (tuned / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 2]
  assert all(line['loss'] for line in lines)
  assert 'open loop on 2 windows' in run('wam_jax.evaluate', f'--workdir={tuned}')

  run('wam_jax.convert', 'export', f'--source={tuned}', f'--output={tmp_path / "back"}')
  given = tiny.load(tmp_path / 'back')
  assert given.keys() == weights.keys()
  changed = set()
  for name, w in given.items():
    want = weights[name]
    assert w.shape == want.shape
    if (w.astype('f4') != want.astype('f4')).any():
      changed.add(name)
  # Training moved the transformer and left the encoders alone.
  assert all(name.startswith('action_head.model.') for name in changed)
  assert len(changed) > 100
