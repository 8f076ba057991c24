"""Samples to examples: windows of a dataset, read, decoded and normalized, side by side as a batch.

This is what grain's threads and workers run, and so it imports no JAX: fields of `types.Batch`
travel in dicts by name, and become a `Batch` where the iterator hands them out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam_jax import config as cfg
from wam_jax.data import cache as cache_lib
from wam_jax.data import episode as episode_lib
from wam_jax.data import images
from wam_jax.data import robot as robot_lib
from wam_jax.data import sources
from wam_jax.data import tiles
from wam_jax.data import windows
from wam_jax.data.features import lookup


@dataclasses.dataclass(frozen=True)
class Film:
  """The camera frames of one sample, not decoded yet.

  Attributes:
    robot: the robot whose cameras these are.
    episode: where the frames are.
    key: the episode's name among the composite images in `cache`.
    steps_R: [R] steps of the frames.
    augmentation: drawn for this sample; None for the frames as evaluation and control see them,
      which are the same whenever they are drawn and therefore cached.
    cache: of composite images.
  """

  robot: robot_lib.Robot
  episode: episode_lib.Episode
  key: tuple[int | str, ...]
  steps_R: np.ndarray
  augmentation: images.Augmentation | None
  cache: cache_lib.Cache

  @property
  def shape(self) -> tuple[int, ...]:
    """(R, I, J, 3)."""
    return (len(self.steps_R), *self.robot.record.composite, 3)

  def paint(self, frames_RIJ3: np.ndarray) -> None:
    """Decodes each frame once and writes them."""
    steps, first_R, of_R = np.unique(self.steps_R, return_index=True, return_inverse=True)
    # Frames that are augmented anew each time are not worth a place in the cache.
    is_cached = self.augmentation is None
    new = [step for step in steps.tolist() if not (is_cached and (*self.key, step) in self.cache)]
    episode = self.episode.load(new)
    paint_step = self._make_composer(episode) if is_cached else self._make_painter(episode)
    for step, row in zip(steps.tolist(), first_R.tolist()):
      paint_step(step, frames_RIJ3[row])
    # Past the end of a span its last frame repeats.
    source_R = first_R[of_R]
    for row in np.flatnonzero(source_R != np.arange(len(source_R))):
      frames_RIJ3[row] = frames_RIJ3[source_R[row]]

  def _make_painter(self, episode: episode_lib.Episode) -> Callable[[int, np.ndarray], None]:
    painter = tiles.Painter(self.robot.record, self.augmentation)

    def paint_step(step: int, out_IJ3: np.ndarray) -> None:
      painter.paint(lambda key: episode.decode_bgr(key, step), out_IJ3)

    return paint_step

  def _make_composer(self, episode: episode_lib.Episode) -> Callable[[int, np.ndarray], None]:
    keys = [view.key for view in self.robot.record.views]

    def paint_step(step: int, out_IJ3: np.ndarray) -> None:
      out_IJ3[:] = self.cache.get(
        (*self.key, step),
        lambda: self.robot.compose({key: episode.decode(key, step) for key in keys}),
      )

    return paint_step


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Turns sample indices of one dataset into examples.

  Attributes:
    index: place of the dataset in the mixture.
    name, weight: key and weight of the dataset in the mixture.
    episodes: the dataset.
    anchors: where its windows may begin.
    robot: the robot it is of.
    model: shapes to pad to.
    tokenize: prompt to ids.
    train: draw an instruction, and an augmentation where the robot's training has them; otherwise
      the first instruction and what evaluation sees.
    cache: of decoded composite images.
    stored: features in place of pixels; samples are then the stored windows instead of all anchors.
  """

  index: int
  name: str
  weight: float
  episodes: sources.Episodes
  anchors: windows.Anchors
  robot: robot_lib.Robot
  model: cfg.ModelConfig
  tokenize: Callable[[str], np.ndarray]
  train: bool
  cache: cache_lib.Cache
  stored: lookup.Stored | None = None

  def __len__(self) -> int:
    """Samples."""
    return len(self.anchors) if self.stored is None else len(self.stored)

  def __call__(self, sample: int, rng: np.random.Generator) -> dict[str, Any]:
    """Fields of `types.Batch` by name, without the batch axis.

    Frames are a `Film`, for `stack` to decode in place, or there are `features` in their stead.
    """
    anchor = self._locate(sample)
    # Features stand for the images, which are then not even parsed.
    read = self.episodes.__getitem__ if self.stored is None else self.episodes.numbers
    episode = read(anchor.episode)
    window = windows.make_window(
      self.robot.record,
      self.model.max_chunks,
      anchor.step,
      anchor.stop,
      self.model.action_overlap,
    )
    proprio_QX, action_QSU = windows.gather(episode, self.robot.record, window)
    overlap = self.model.action_overlap
    given_Q, action_mask_QS = np.zeros(len(window.mask_Q), np.int32), window.action_mask_QS
    if episode.given_T is not None:
      given_Q, action_mask_QS = windows.find_given(episode.given_T, window, overlap)
    action_AU, action_mask_AU = self._pad_actions(action_QSU, action_mask_QS)

    # The instruction is drawn first and then how frames look: what a seed gives must not change.
    ids_P = self._draw_prompt(episode.texts(anchor.step), rng)
    example = {
      'action_BAU': action_AU,
      'action_mask_BAU': action_mask_AU,
      'proprio_BQX': self.robot.normalize_proprio(proprio_QX, self.model.proprio_dim),
      'chunk_mask_BQ': window.mask_Q,
      'prompt_ids_BP': ids_P,
      'embodiment_B': np.int32(self.robot.id),
      'sample_B2': np.asarray((self.index, sample), np.int32),
    }
    if overlap:
      example['given_BQ'] = given_Q
    if self.stored is None:
      example['frames_BRIJ3'] = self._draw_film(anchor.episode, episode, window.frame_steps_R, rng)
    else:
      # Each variant was augmented in another way when the features were made.
      variant = int(rng.integers(self.stored.variants))
      example['features'] = self.stored.read(sample, variant, ids_P)
    return example

  def _locate(self, sample: int) -> windows.Anchor:
    """Where the window of a sample begins."""
    return self.anchors[sample if self.stored is None else self.stored.find_anchor(sample)]

  def _pad_actions(
    self, action_QSU: np.ndarray, mask_QS: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Normalized actions in the first S of each chunk's rows, and which of the numbers are real."""
    Q, S, U = action_QSU.shape
    padded = (Q, self.model.action_horizon, self.model.action_dim)
    # What lies past the span repeats the last step; none of it is an action.
    real_QS1 = mask_QS[:, :, None]
    mask_QAU = np.zeros(padded, bool)
    mask_QAU[:, :S, :U] = real_QS1
    action_QAU = np.zeros(padded, np.float32)  # The normalized middle, where nothing is real.
    normalized_QSU = self.robot.normalize_action(action_QSU, self.model.action_dim)
    action_QAU[:, :S] = normalized_QSU * real_QS1
    rows = Q * self.model.action_horizon
    return action_QAU.reshape(rows, -1), mask_QAU.reshape(rows, -1)

  def _draw_film(
    self, number: int, episode: episode_lib.Episode, steps_R: np.ndarray, rng: np.random.Generator
  ) -> Film:
    augmented = self.train and self.robot.center_crop
    return Film(
      robot=self.robot,
      episode=episode,
      key=(self.index, self.episodes.split, number),
      steps_R=steps_R,
      augmentation=images.sample_augmentation(rng) if augmented else None,
      cache=self.cache,
    )

  def _draw_prompt(self, texts: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """[P] ids of one of the instructions; empty ones do not count where there is another."""
    texts = [text for text in texts if text.strip()] or ['']
    # One text takes no draw, so that datasets with one keep what a seed gave them.
    has_choice = self.train and len(texts) > 1
    drawn = rng.integers(len(texts)) if has_choice else 0
    return self.tokenize(self.robot.instruct(texts[drawn]))


class Draw(NamedTuple):
  """What makes an example, before anything is read.

  Attributes:
    dataset: place in the mixture.
    sample: index in the dataset.
    rng: of everything that is drawn for the example.
  """

  dataset: int
  sample: int
  rng: np.random.Generator


def make_draw(dataset: int, sample: int, rng: np.random.Generator) -> Draw:
  """A `Draw` with a generator of its own: grain uses the one it gives again."""
  return Draw(dataset, sample, copy.deepcopy(rng))


def make_rows(
  mixture: Sequence[Sampler], rows: Sequence[int], draws: Sequence[Draw]
) -> dict[str, Any]:
  """Fields of `types.Batch` by name: some rows of a batch; the others are not read."""
  chosen = [draws[row] for row in rows]
  return stack([mixture[draw.dataset](draw.sample, draw.rng) for draw in chosen])


def stack(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Examples with a batch axis before each field, their frames decoded."""
  return {name: _stack([example[name] for example in examples]) for name in examples[0]}


def _stack(values: Sequence[Any]) -> Any:
  if isinstance(values[0], Mapping):
    return stack(values)
  if not isinstance(values[0], Film):
    return np.stack(values)
  # Each image is painted into its place: frames are most of a batch, and stacking would copy them.
  frames_BRIJ3 = np.empty((len(values), *values[0].shape), np.uint8)
  for film, frames_RIJ3 in zip(values, frames_BRIJ3):
    film.paint(frames_RIJ3)
  return frames_BRIJ3


def start_worker(number: int, count: int) -> None:
  """What a worker process of grain does first."""
  del number, count  # All workers are alike.
  images.use_one_thread()
