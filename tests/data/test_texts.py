"""Which prompts of a dataset are cut is found once, kept, and told when training starts."""

from __future__ import annotations

import dataclasses
import pathlib

from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import pipeline
from wam_jax.data import sources
from wam_jax.data import texts

LONG = 'Put ' + ' and '.join(f'block {i}' for i in range(8))  # 1 + 8 * 2 + 7 words.


def make_dataset(root) -> str:
  def edit(episodes):
    for step in episodes[1]:
      step['language_instruction'] = LONG

  return synthetic.make_dataset(root, (12, 12, 12), edit)


def test_cut_prompts_are_found(tmp_path):
  episodes = sources.Episodes(make_dataset(tmp_path), 'train', synthetic.CLOCK)
  found = texts.load(episodes)
  assert found == (LONG, 'Task 0', 'Task 2')
  cut = texts.find_cut(found, synthetic.CLOCK, cfg.TextConfig(length=23))
  assert (cut.count, cut.total, cut.tokens, cut.longest) == (1, 3, 24, LONG.lower())
  assert cut.describe('these') == (
    '1 of the 3 instructions of these give prompts that are cut: the longest has 24 tokens, of '
    f'which config.model.text.length=23 are read: {LONG.lower()!r}'
  )
  assert texts.find_cut(found, synthetic.CLOCK, cfg.TextConfig(length=24)) is None
  # The template counts, too.
  record = dataclasses.replace(synthetic.CLOCK, prompt='now {}')
  assert texts.find_cut(found, record, cfg.TextConfig(length=24)).tokens == 25

  # Kept, and not of other data.
  file = next(pathlib.Path(episodes.path).glob('wam_texts_clock_train*.json'))
  again = texts.Texts(episodes)
  assert again.load()
  assert again.texts == found
  file.write_text(file.read_text().replace(episodes.fingerprint, '0' * 16))
  assert not texts.Texts(episodes).load()


def test_training_tells_the_longest_once(tmp_path):
  config = synthetic.make_config({'d': (make_dataset(tmp_path), 'clock', 1.0)})
  notes = pipeline.Data.open(config).notes
  told = [note for note in notes if 'cut' in note]
  assert told == [
    "1 of the 3 instructions of split 'train' of d give prompts that are cut: the longest has 24 "
    f'tokens, of which config.model.text.length=16 are read: {LONG.lower()!r}'
  ]
