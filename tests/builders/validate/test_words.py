"""Instructions that are no words, and prompts that are cut, are found and named."""

from __future__ import annotations

import pytest

from data.validate import checks
from data.validate import findings as findings_lib
from data.validate import survey
from data.validate import words
from tests.builders.validate import spoilt
from wam_jax import config as cfg
from wam_jax.data import sources


def check(text: str) -> findings_lib.Findings:
  """What is said of a dataset in which one of seven spans has this text."""
  kept = survey.Survey.of(spoilt.ROBOT)
  kept.spans = 7
  kept.texts['language_instruction', 'go there'] = survey.Seen('record 0 of made', 0, 6)
  kept.texts['language_instruction', text] = survey.Seen('record 2 of made', 10, 1)
  findings = findings_lib.Findings()
  words.check(kept, None, findings)
  return findings


def test_texts_are_counted_by_span(tmp_path):
  def edit(episodes):
    episodes[2]['text'] = ['go there'] * 10 + [b'go\xff'] * (spoilt.STEPS - 10)

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    list(findings.messages('warn')),
    'language',
    "language_instruction is 'go\N{REPLACEMENT CHARACTER}' in 1 of the 7 spans, first from step 10 "
    'of record 2 of',
  )


@pytest.mark.parametrize(
  ('text', 'level', 'says'),
  [
    ('7', 'fail', 'a number; expected an instruction in words'),
    ('0x10', 'fail', 'a number'),
    ('None', 'fail', 'no instruction; expected words'),
    ('<tf.Tensor: shape=()>', 'fail', 'the print of an object'),
    ("['go' 'there']", 'fail', "the print of an object, which the model is told as 'gothere'"),
    (
      "['go', 'there']",
      'warn',
      'a list of 2 as Python prints it, of which the model is told the f',
    ),
    ("b'go there'", 'warn', "as Python prints a bytes; the model is told 'go there'"),
    ("['go there']", 'warn', "as Python prints a list; the model is told 'go there'"),
    ('go\N{REPLACEMENT CHARACTER}', 'warn', 'not all of it is UTF-8'),
  ],
)
def test_instructions_that_are_no_words(text, level, says):
  findings = check(text)
  found = list(findings.messages(level))
  where = f'language_instruction is {text!r} in 1 of the 7 spans, first from step 10 of record 2 of'
  spoilt.expect(found, 'language', where, says)
  assert len(found) == 1
  assert findings.count('fail') == (level == 'fail')


@pytest.mark.parametrize('text', ['go there', "don't go", '7 times left', '(slowly) go there'])
def test_words_are_fine(text):
  findings = check(text)
  assert not findings.count('fail')
  assert not findings.count('warn')


def test_prompts_that_are_cut(good_path):
  findings = findings_lib.Findings()
  episodes = sources.Episodes(good_path, 'train', spoilt.ROBOT)
  checks.run(episodes, [0], [0], findings, cfg.TextConfig(length=1))
  spoilt.expect(
    list(findings.messages('warn')),
    'prompt',
    '1 of the 1 instructions of this split give prompts that are cut: the longest has 2 tokens, of '
    "which config.model.text.length=1 are read: 'go there'; raise it",
  )
