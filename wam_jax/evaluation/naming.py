"""What the directory of an evaluation is called: another name for whatever gives other results.

Owns the words. What is as the run's config has it goes without any, so that most names are short.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence

from wam_jax import config as cfg
from wam_jax import storage
from wam_jax.evaluation import delay as delay_lib
from wam_jax.evaluation import recorded as recorded_lib

_LONGEST = 200  # Letters; file systems take 255.
# What tells splits apart, as 'train[90%:]' from 'train[:90%]'.
_SIGNS = {':': '_to_', '%': 'percent', '-': '_minus_', '+': '_and_'}


def join(parts: Sequence[str]) -> str:
  """The name; of one that is too long, what it begins with and a digest."""
  name = '_'.join(parts)
  return name if len(name) <= _LONGEST else f'{name[:_LONGEST]}_{_digest(name)}'


def name_sampling(sample: cfg.SampleConfig, trained: cfg.SampleConfig) -> Iterator[str]:
  """How a model is sampled, where the config of its run says `trained`."""
  alone = sample.steps_of_actions_alone
  yield f'{sample.mode}{alone if sample.mode == "act_only" else sample.steps}'
  if sample.keeps_video:
    yield str(sample.action_steps)
  if sample.evaluate_steps != trained.evaluate_steps and not alone:
    yield f'evaluate{"-".join(map(str, sample.evaluate_steps)) or "all"}'
  if sample.solver != trained.solver:
    yield sample.solver
  if sample.guidance_scale != trained.guidance_scale:
    yield f'guidance{sample.guidance_scale:g}'
  if sample.history != 'reset':
    yield sample.history
  if sample.precision != 'model':
    yield sample.precision
  yield from (entry.replace('=', '') for entry in sample.mesh)


def name_timing(timing: delay_lib.Choice) -> Iterator[str]:
  """What the robot does while a chunk is computed."""
  if timing.is_given:
    yield f'{timing.when or "wait"}{timing.delay or 0}'
  if timing.execute:
    yield f'execute{timing.execute}'


def name_scenes(evaluation: cfg.EvalConfig, trained: cfg.EvalConfig, seed: int) -> Iterator[str]:
  """How many scenes or windows, and which, where the config of the run says `trained`."""
  if evaluation.env != trained.env:
    yield evaluation.env
  if evaluation.episodes != trained.episodes:
    yield f'episodes{evaluation.episodes}'
  if evaluation.time_limit_s != trained.time_limit_s:
    yield f'limit{evaluation.time_limit_s:g}'
  # The noise is of a batch.
  batches = [min(e.batch, evaluation.episodes) for e in (evaluation, trained)]
  if batches[0] != batches[1]:
    yield f'batch{batches[0]}'
  if seed:
    yield f'seed{seed}'


def name_recorded(choice: recorded_lib.Choice) -> Iterator[str]:
  """Which recorded episodes: the ends of paths, and of a dataset, which may have others' ends, a
  digest of all of it.
  """
  if choice.dataset:
    path = os.fspath(storage.make_path(choice.dataset, '--dataset'))
    path = path if storage.is_remote(path) else os.path.abspath(path)
    yield _spell('_'.join(path.split('/')[-2:]))
    yield _digest(path)
  if choice.embodiment:
    yield _spell('_'.join(choice.embodiment.split('/')[-2:]))
  if choice.split:
    yield _spell(''.join(_SIGNS.get(letter, letter) for letter in choice.split))


def _spell(text: str) -> str:
  """As letters and digits."""
  return re.sub(r'[^A-Za-z0-9]+', '_', text).strip('_')


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:6]
