"""A checkpoint in somebody else's layout, opened: which weights it holds, and which our tables ask
for. Opening one reads headers and configs, never numbers.

Knows no layout: `wan` and the folders `dreamzero` and `diffusers` make these. The parts are 'dit'
(with the action modules), 'text', 'image' and 'tokenizer' (the video VAE).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.interop import lazy
from wam_jax.interop.table import dit
from wam_jax.interop.table import image
from wam_jax.interop.table import rows as rows_lib
from wam_jax.interop.table import text
from wam_jax.interop.table import vae

PARTS = ('dit', 'text', 'image', 'tokenizer')
# Where a vocabulary lies: beside the weights, in a Diffusers directory, in Wan-AI's.
VOCABULARY_FOLDERS = ('.', 'tokenizer', 'google/umt5-xxl')

# How the released policy trains, and what it does at control time: eight evaluations of sixteen
# steps. Source: DreamZero `WANPolicyHead`.
FLOW = cfg.FlowConfig(video_beta=3.0, action_mean='padded', mask_padded_noise=False)
SAMPLE = cfg.SampleConfig(
  solver='unipc',
  steps=16,
  shift=5.0,
  guidance_scale=5.0,
  negative_prompt=prompts.NEGATIVE,
  evaluate_steps=(0, 1, 2, 6, 10, 13, 14, 15),
  integer_timesteps=True,
  same_noise=True,
  observed='fresh',
  anchor='reference',
)

Parts = Mapping[str, Mapping[str, lazy.Weight]]


@dataclasses.dataclass(frozen=True)
class Options:
  """What the files do not say.

  Attributes:
    layout: 'dreamzero', 'wan' or 'diffusers'; '' to find out.
    base: the directory whose weights the adapters of a LoRA checkpoint change.
    encoders: by part, a file or directory that holds it, where the source does not.
    image_heads: the attention heads of a CLIP of another width than the released one; 0 for the
      released number.
    num_embodiments: the categories of action modules that are made new.
  """

  layout: str = ''
  base: epath.Path | None = None
  encoders: Mapping[str, epath.Path] = dataclasses.field(default_factory=dict)
  image_heads: int = 0
  num_embodiments: int = 1

  @property
  def image_words(self) -> dict[str, int]:
    """What is known of the image encoder, in DreamZero's words."""
    return {'num_heads': self.image_heads} if self.image_heads else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign:
  """A checkpoint in one of the layouts, opened.

  Attributes:
    layout: 'dreamzero', 'wan' or 'diffusers'.
    path: its directory.
    model: the model that its config files and shapes describe.
    fields: the fields `flow` and `sample` of a TrainConfig that trains and acts as before.
    weights: what is there, by part, in the order of the files.
    tables: the rows by part; `weights` has the names in them.
    extra: the arrays beside those of the tables, by path in the checkpoint's item `frozen`.
    lacks: one line per set of files that is missing; its part is in no table then.
    fresh: the names that no published file holds, made new.
    merged: the number of adapters in `weights`.
    base: the directory that a LoRA checkpoint was completed from.
    notes: what its files leave open, and how it is understood here, for people.
    read_robots: the robots with statistics, none in layouts that know of no robots; raises
      ValueError where files are missing or cannot be understood.
  """

  layout: str
  path: epath.Path
  model: cfg.ModelConfig
  fields: Mapping[str, Any]
  weights: Parts
  tables: Mapping[str, list[rows_lib.Row]] = dataclasses.field(default_factory=dict)
  extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  lacks: tuple[str, ...] = ()
  fresh: tuple[str, ...] = ()
  merged: int = 0
  base: epath.Path | None = None
  notes: tuple[str, ...] = ()
  read_robots: Callable[[], list[robot_lib.Robot]] = list

  def list_problems(self) -> list[str]:
    """One line per weight that is missing, unexpected or misshapen, or for many that are missing
    together.
    """
    problems = [*self.lacks]
    shapes = list_shapes(self.weights)
    for part, table in self.tables.items():
      problems += [f'{part}: {line}' for line in rows_lib.list_mismatches(table, shapes[part])]
    # Where files are missing, no part has a table, and nothing is known to be unexpected.
    if self.lacks:
      return problems
    for part, weights in self.weights.items():
      if weights and part not in self.tables:
        problems.append(
          f'{part}: {len(weights)} weights are unexpected: the config asks for no such part'
        )
    return problems

  def find_vocabulary(self) -> epath.Path | None:
    """The text encoder's vocabulary in the source, or in its base."""
    for place in (self.path, self.base):
      if place is None:
        continue
      found = workdir_lib.find_vocabulary(place, VOCABULARY_FOLDERS)
      if found is not None:
        return found
    return None


def make_tables(model: cfg.ModelConfig, layout: str) -> dict[str, list[rows_lib.Row]]:
  """The rows of every part that the model has; 'dreamzero' without its prefixes is 'wan'."""
  # DreamZero kept Wan-AI's names.
  names = 'diffusers' if layout == 'diffusers' else 'wan'
  tables = {'dit': dit.rows(model, names), 'text': text.rows(model.text, names)}
  if model.image.kind == 'clip':
    tables['image'] = image.rows(model.image, names)
  tables['tokenizer'] = vae.rows(model.tokenizer, names)
  return tables


def list_shapes(parts: Parts) -> dict[str, dict[str, tuple[int, ...]]]:
  """The shape of every weight, by part and name; a part that is not there has none."""
  shapes = {}
  for part in PARTS:
    weights = parts.get(part, {})
    shapes[part] = {name: tuple(w.shape) for name, w in weights.items()}
  return shapes
