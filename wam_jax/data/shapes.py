"""What a batch of a config looks like: sizes in pixels and patches, shapes and dtypes, and whether
the robots' fit the model's.

Told from the config and the robots' records alone; reads no dataset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.data import record as record_lib
from wam_jax.data import roster as roster_lib

IMPORTED = ('wan2_1', 'wan2_2')  # Tokenizers whose latents are worth storing.


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a config trains on, in pixels and in patches of a latent frame.

  Attributes:
    rows, columns: pixels of the composite image.
    latent_rows, latent_columns: cells of its latent.
    tokens_per_frame: patches of a latent frame.
  """

  rows: int
  columns: int
  latent_rows: int
  latent_columns: int
  tokens_per_frame: int


def sizes(config: cfg.TrainConfig) -> Sizes:
  """Sizes that the robots of the mixture give.

  Raises:
    ValueError: there are none, or their images are not of one size.
  """
  model = config.model
  roster = roster_lib.read(config.data)
  # A config may name robots for their ids that its own mixture has no data of.
  used = list(roster.datasets.values()) or list(roster.robots.values())
  composites = {record.composite for record in used}
  if len(composites) != 1:
    names = sorted({record.name for record in used})
    raise ValueError(
      f'config.data must name robots with images of one size; {names} have {sorted(composites)}.'
    )
  rows, columns = composites.pop()
  encoded = model.tokenizer.resize or (rows, columns)
  latent_rows, latent_columns = (n // model.tokenizer.spatial for n in encoded)
  return Sizes(
    rows=rows,
    columns=columns,
    latent_rows=latent_rows,
    latent_columns=latent_columns,
    tokens_per_frame=(latent_rows // model.patch) * (latent_columns // model.patch),
  )


def takes_features(config: cfg.TrainConfig) -> bool:
  """Whether the step is given stored features: where the tokenizer is a large one, unless the
  config says 'off'.
  """
  return config.model.tokenizer.kind in IMPORTED and config.data.features != 'off'


def batch(config: cfg.TrainConfig) -> types.Batch:
  """The batch of all hosts as ShapeDtypeStructs; of pixels or of features, as `takes_features`."""
  c = config.model
  B, Q, P = config.batch_size, c.max_chunks, c.text.length
  A = Q * c.action_horizon
  array = jax.ShapeDtypeStruct

  # One of the two: features were made of the pixels and take their place.
  frames = features = None
  if takes_features(config):
    features = _features(config)
  else:
    size = sizes(config)
    frames = array((B, c.camera_frames(Q), size.rows, size.columns, 3), np.uint8)
  return types.Batch(
    frames_BRIJ3=frames,
    action_BAU=array((B, A, c.action_dim), np.float32),
    action_mask_BAU=array((B, A, c.action_dim), bool),
    proprio_BQX=array((B, Q, c.proprio_dim), np.float32),
    chunk_mask_BQ=array((B, Q), bool),
    prompt_ids_BP=array((B, P), np.int32),
    embodiment_B=array((B,), np.int32),
    sample_B2=array((B, 2), np.int32),
    given_BQ=array((B, Q), np.int32) if c.action_overlap else None,
    features=features,
  )


def _features(config: cfg.TrainConfig) -> types.Features:
  c = config.model
  B = config.batch_size
  size = sizes(config)
  frames = 1 + c.max_chunks * c.frames_per_chunk
  latents = jax.ShapeDtypeStruct(
    (B, frames, size.latent_rows, size.latent_columns, c.tokenizer.channels), np.float32
  )
  text = image = None
  if c.text.kind == 'umt5':
    text = jax.ShapeDtypeStruct((B, c.text.length, c.text.dim), c.text.dtype)
  if c.image.kind == 'clip':
    image = jax.ShapeDtypeStruct((B, c.image.tokens, c.image.dim), c.image.dtype)
  return types.Features(
    clean_BFHWC=latents,
    text_BPC=text,
    image_BIC=image,
    condition_BFHWC=latents if c.image_condition else None,
  )


def check_robots(model: cfg.ModelConfig, records: Collection[record_lib.Embodiment]) -> None:
  """Raises ValueError unless the model's shapes hold every robot."""
  problems = [problem for r in records for problem in _list_misfits(model, r)]
  # A batch is one array of frames, whatever robots are in it.
  if len({r.composite for r in records}) > 1:
    problems.append(
      'all embodiments need the same composite, got '
      + ', '.join(f'{r.name} {r.composite}' for r in records)
    )
  if problems:
    raise ValueError('The embodiments do not fit config.model:\n  ' + '\n  '.join(problems[:10]))


def _list_misfits(model: cfg.ModelConfig, record: record_lib.Embodiment) -> Iterator[str]:
  if record.camera_frames_per_chunk != model.camera_frames_per_chunk:
    yield (
      f'{record.name} shows {record.camera_frames_per_chunk} camera frames a chunk, the model '
      f'takes frames_per_chunk * tokenizer.temporal = {model.camera_frames_per_chunk}; change '
      'either, or video_fps'
    )
  # These are padded, and so may be less than the model has.
  fixed = "or, as weights of a base keep their size, take fewer columns into the robot's record"
  for what, needed, key, otherwise in (
    (
      'control steps a chunk',
      record.steps_per_chunk,
      'actions_per_chunk',
      "or shorten chunk_s of the robot's record, and raise video_fps as much",
    ),
    ('action dimensions', record.action_dim, 'action_dim', fixed),
    ('state dimensions', record.proprio_dim, 'proprio_dim', fixed),
  ):
    if needed > getattr(model, key):
      yield (
        f'{record.name} has {needed} {what}; set model.{key} to at least that '
        f'(now {getattr(model, key)}), {otherwise}'
      )
  # Of a robot whose chunks are shorter, steps that its next chunk has not either.
  if record.action and model.action_overlap > record.steps_per_chunk:
    yield (
      f'{record.name} has {record.steps_per_chunk} control steps a chunk; set model.action_overlap '
      f'to at most that (now {model.action_overlap})'
    )
  seen = model.tokenizer.resize or record.composite
  cell = model.tokenizer.spatial * model.patch
  if any(n % cell for n in seen):
    yield (
      f'{record.name} shows the model {seen[0]} x {seen[1]} pixels; both must be multiples of '
      f'tokenizer.spatial * patch = {cell}'
    )
