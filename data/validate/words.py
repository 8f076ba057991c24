"""Instructions that are no words: prints of Python objects, numbers, bytes; and prompts that a text
encoder would cut.
"""

from __future__ import annotations

import re

from data.validate import findings as findings_lib
from data.validate import survey
from wam_jax import config as cfg
from wam_jax.data import prompts
from wam_jax.data import texts

_NUMBER = re.compile(r'[-+]?(?:0[xXoObB][0-9a-fA-F]+|[\d_.]+(?:[eE][-+]?\d+)?)')
_NOTHING = frozenset({'none', 'null', 'nan', 'true', 'false', 'n/a', 'unknown'})
# What an object looks like that was printed instead of the text that it holds.
_OBJECT = re.compile(r'<[\w.]+[ :]|(?:tf\.)?(?:Tensor|array|EagerTensor)\(|\{')
_SEVERAL = re.compile(r"""\[\s*(['"]).*?\1\s+['"]""", re.DOTALL)
_UNREADABLE = '\N{REPLACEMENT CHARACTER}'


def check(
  kept: survey.Survey, config: cfg.TextConfig | None, findings: findings_lib.Findings
) -> None:
  """Makes all checks of this file.

  Args:
    config: of the text encoder; None where the dataset is looked at for no run.
  """
  for (key, text), seen in kept.texts.items():
    where = (
      f'{key} is {text[:60]!r} in {seen.count} of the {kept.spans} spans, first from step '
      f'{seen.step} of {seen.where}'
    )
    _check_text(text, where, findings)
  if config is not None:
    cut = texts.find_cut((text for _, text in kept.texts), kept.record, config)
    if cut:
      findings.warn('prompt', f'{cut.describe("this split")}; raise it, or write shorter ones.')


def _check_text(text: str, where: str, findings: findings_lib.Findings) -> None:
  plain = text.strip()
  told = prompts.parse_instruction(plain)
  value = prompts.read_literal(plain)
  if _UNREADABLE in plain:
    findings.warn('language', f'{where}: not all of it is UTF-8; expected text: encode it again.')
  if _NUMBER.fullmatch(told):
    findings.fail(
      'language',
      f'{where}: a number; expected an instruction in words: look it up in the table of tasks.',
    )
  elif told.strip() in _NOTHING:
    findings.fail(
      'language', f'{where}: no instruction; expected words: write them, or leave the text empty.'
    )
  elif _OBJECT.match(plain) or _SEVERAL.match(plain):
    findings.fail(
      'language',
      f'{where}: the print of an object, which the model is told as {told[:60]!r}; expected the '
      'text that it holds.',
    )
  elif isinstance(value, (list, tuple)) and len(value) > 1:
    findings.warn(
      'language',
      f'{where}: a list of {len(value)} as Python prints it, of which the model is told the first, '
      f'{told[:60]!r}; expected one text, or several keys.',
    )
  elif value is not plain:
    findings.warn(
      'language',
      f'{where}: as Python prints a {type(value).__name__}; the model is told {told[:60]!r}; '
      'expected the text alone.',
    )
