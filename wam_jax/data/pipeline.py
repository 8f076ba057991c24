"""Datasets to batches: mix, shuffle, shard by host, decode, batch, prefetch (grain).

Sample k of dataset d is a function of (seed, d, k) alone, and batch t of a function of (config, t):
not of the number of hosts, threads or workers, nor of what ran before. Where a run stands is
therefore one number, and a run may go on with another number of hosts or workers. Indices are
shuffled before anything is read, and the frames of a sample are decoded, each once, into the batch.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import grain
import jax
import numpy as np
from absl import flags

from wam_jax import config as cfg
from wam_jax import remote
from wam_jax import types
from wam_jax.data import cache as cache_lib
from wam_jax.data import embodiments
from wam_jax.data import features
from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import tiles
from wam_jax.data import windows


class Batches(Iterator[types.Batch]):
  """Batches of one host, forever, computed ahead; close it when done.

  Args:
    batches: batch t of this host.
  """

  def __init__(self, batches: grain.MapDataset, config: cfg.DataConfig):
    self._batches, self._config, self._step = batches, config, 0
    self._iterator: grain.DatasetIterator | None = (
      None  # Nothing is read before the first batch is asked for.
    )

  def __next__(self) -> types.Batch:
    if self._iterator is None:
      self._iterator = _read_ahead(self._batches[self._step :], self._config)
    batch = next(self._iterator)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """Where this iterator is; the same on every host, and all that `set_state` needs."""
    return {'next_index': self._step}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes on after the batches that had been taken at `get_state`, on whatever number of hosts and
    workers.

    Raises:
      ValueError: not a state of this class.
    """
    if set(state) != {'next_index'}:
      raise ValueError(
        f'Not the state of a data iterator: {state}; expected next_index, the number of batches taken.'
      )
    self.close()
    self._step = int(state['next_index'])

  def close(self) -> None:
    """Ends threads and worker processes."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


def make_train_iterator(
  config: cfg.TrainConfig,
  shard_index: int = 0,
  shard_count: int = 1,
  stored: Mapping[str, features.Stored] | None = None,
) -> Batches:
  """Batches of this host, forever, computed ahead.

  Args:
    shard_index, shard_count: this host and how many there are; the hosts' batches of a step, one
      after the other, are the one batch of a single host.
    stored: features in place of pixels, from `find_features`.
  Raises:
    ValueError: the data does not fit the config, or cannot be read; raised here wherever it can be
      known.
  """
  mixture = _load_mixture(config, stored=stored)
  return Batches(
    _batches(config, mixture, config.data.seed, True, shard_index, shard_count), config.data
  )


def make_eval_batches(
  config: cfg.TrainConfig,
  num: int,
  split: str = 'val',
  shard_index: int = 0,
  shard_count: int = 1,
  stored: Mapping[str, features.Stored] | None = None,
) -> Iterator[types.Batch]:
  """`num` held-out batches of this host, the same at every call: fixed shuffle, first instruction,
  no jitter.

  Normalized with the statistics of training. A split with fewer windows than are asked for is
  repeated.
  Raises:
    ValueError: as `make_train_iterator`, or a dataset has no such split.
  """
  mixture = _load_mixture(config, split, stored)
  batches = _batches(config, mixture, 0, False, shard_index, shard_count)
  return (batches[i] for i in range(num))


def find_features(
  config: cfg.TrainConfig, weights: Callable[[], Mapping[str, str]], split: str = ''
) -> dict[str, features.Stored]:
  """By dataset, what `python -m data.encode` stored of training, or of `split`, with these
  encoders; {} for pixels.

  `config.data.features` says whether there must be any; held-out splits need none.

  Args:
    weights: gives the hashes of the encoders, from `models.encoders.fingerprint`.
  Raises:
    ValueError: features are there and of something else, or of some of the datasets only.
  """
  datasets = {s.name: (s.episodes, s.anchors) for s in _load_mixture(config, split)}
  mode = 'auto' if split and config.data.features == 'require' else config.data.features
  return features.find_all(
    datasets, config.model, weights, features.transform_of(config.data.augment, not split), mode
  )


def load_metadata(config: cfg.TrainConfig) -> dict[str, Any]:
  """JSON-ready: per embodiment its id, record and statistics; all that serving needs of the data.

  `robot_lib.from_metadata` turns it back into objects.
  """
  prepare(config.data)
  known = _known_embodiments(config.data, cache_lib.Cache(0))
  return robot_lib.to_metadata(list(known.values()))


def prepare(config: cfg.DataConfig) -> None:
  """Runs `prepare` of every dataset whose directory is not there.

  Raises:
    ValueError: the command failed, or left no dataset.
  """
  for name, dataset in config.mixture.items():
    path = remote.make_path(dataset.path, f'data.mixture.{name}.path')
    if path.exists() or not dataset.prepare:
      continue
    if '{source}' in dataset.prepare and not dataset.source:
      raise ValueError(
        f'data.mixture.{name}.path={path} is not there, and data.mixture.{name}.source, from which it '
        'is made, is empty; set either, as --config.data.mixture.' + name + '.source=DIR.'
      )
    command = dataset.prepare.format(path=path, source=dataset.source)
    print(f'{path} is not there; making it: python -m {command}', file=sys.stderr)
    done = subprocess.run([sys.executable, '-m', *shlex.split(command)])
    if done.returncode or not path.exists():
      raise ValueError(
        f'data.mixture.{name}.prepare: python -m {command} ended with code {done.returncode} '
        f'and {path} {"exists" if path.exists() else "does not exist"}.'
      )


@dataclasses.dataclass(frozen=True)
class Film:
  """The camera frames of one sample, not decoded yet.

  Attributes:
    record: of the robot.
    episode: where the frames are.
    key: of the episode among the composite images in `cache`.
    steps_R: [R] steps.
    augmentation: None for none.
    cache: of composite images that are the same whenever they are drawn; None for frames that are
      not.
  """

  record: embodiments.Embodiment
  episode: sources.Episode
  key: tuple[int | bool, ...]
  steps_R: np.ndarray
  augmentation: images.Augmentation | None
  cache: cache_lib.Cache | None

  @property
  def shape(self) -> tuple[int, ...]:
    """(R, I, J, 3)."""
    return (len(self.steps_R), *self.record.composite, 3)

  def paint(self, frames_RIJ3: np.ndarray) -> None:
    """Decodes each frame once and writes them."""
    make = self._painted() if self.cache is None else self._compose
    steps, first_R, of_R = np.unique(self.steps_R, return_index=True, return_inverse=True)
    for step, first in zip(steps.tolist(), first_R.tolist()):
      make(step, frames_RIJ3[first])
    for i in np.flatnonzero(
      first_R[of_R] != np.arange(len(of_R))
    ):  # Past the end of a span its last frame repeats.
      frames_RIJ3[i] = frames_RIJ3[first_R[of_R[i]]]

  def _painted(self):
    painter = tiles.Painter(self.record, self.augmentation)
    return lambda step, out_IJ3: painter.paint(
      lambda key: self.episode.decode_bgr(key, step), out_IJ3
    )

  def _compose(self, step: int, out_IJ3: np.ndarray) -> None:
    views = lambda: {v.key: self.episode.decode(v.key, step) for v in self.record.views}
    out_IJ3[:] = self.cache.get(
      (*self.key, step), lambda: images.compose(self.record, views(), self.augmentation)
    )


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Turns sample indices of one dataset into examples (the fields of `types.Batch`, without the
  batch axis).

  The frames of an example are a `Film`, for `_stack` to decode in place, or their `types.Features`.

  Attributes:
    index: of the dataset in the mixture.
    name, weight: of the dataset in the mixture.
    episodes, anchors: the dataset.
    embodiment: its robot.
    model: shapes to pad to.
    tokenize: prompt to ids.
    train: draw an instruction and an augmentation; otherwise the first and the centre.
    augment: whether there is any.
    cache: of decoded composite images.
    stored: features in place of pixels, and then also the `anchors`.
  """

  index: int
  name: str
  weight: float
  episodes: sources.Episodes
  anchors: windows.Anchors | features.Stored
  embodiment: robot_lib.Robot
  model: cfg.ModelConfig
  tokenize: Callable[[str], np.ndarray]
  train: bool
  augment: bool
  cache: cache_lib.Cache
  stored: features.Stored | None = None

  def __call__(self, sample: int, rng: np.random.Generator) -> tuple[Any, ...]:
    number, step, stop = self.anchors[sample]
    episode = self.episodes[number]
    window = windows.make_window(self.embodiment.record, self.model.max_chunks, step, stop)
    proprio_QX, action_QSU = windows.gather(episode, self.embodiment.record, window)
    action_AU, action_mask_AU = self._actions(action_QSU, window.mask_Q)
    ids_P = self._prompt(episode.texts(step), rng)
    frames = (
      self._film(number, episode, window.frame_steps_R, rng)
      if self.stored is None
      else self.stored.read(sample, int(rng.integers(self.stored.variants)), ids_P)
    )
    return (
      frames,
      action_AU,
      action_mask_AU,
      self.embodiment.normalize_proprio(proprio_QX, self.model.proprio_dim),
      window.mask_Q,
      ids_P,
      np.int32(self.embodiment.id),
      np.asarray((self.index, sample), np.int32),
    )

  def _actions(self, action_QSU, mask_Q):
    """Normalized actions in the first S of each chunk's A rows, and which of the numbers are
    real.
    """
    Q, S, U = action_QSU.shape
    action_QAU = np.zeros((Q, self.model.actions_per_chunk, self.model.action_dim), np.float32)
    mask_QAU = np.zeros(action_QAU.shape, bool)
    mask_QAU[:, :S, :U] = mask_Q[:, None, None]
    normalized_QSU = self.embodiment.normalize_action(action_QSU, self.model.action_dim)
    action_QAU[:, :S] = normalized_QSU * mask_Q[:, None, None]
    return (x.reshape(Q * self.model.actions_per_chunk, -1) for x in (action_QAU, mask_QAU))

  def _film(self, number, episode, steps_R, rng):
    drawn = self.augment and self.train
    augmentation = (
      images.sample_augmentation(rng) if drawn else images.CENTER_CROP if self.augment else None
    )
    return Film(
      self.embodiment.record,
      episode,
      (self.index, number, self.train),
      steps_R,
      augmentation,
      None if drawn else self.cache,
    )

  def _prompt(self, texts, rng):
    texts = [text for text in texts if text.strip()] or ['']
    text = texts[rng.integers(len(texts))] if self.train and len(texts) > 1 else texts[0]
    return self.tokenize(self.embodiment.record.instruct(text))


def _load_mixture(
  config: cfg.TrainConfig, split: str = '', stored: Mapping[str, features.Stored] | None = None
) -> list[Sampler]:
  """A sampler per dataset, on its own split for training or on `split` for evaluation, of pixels or
  stored features.
  """
  if not config.data.mixture:
    raise ValueError('config.data.mixture is empty; add a dataset.')
  _check_weights(config.data)
  _check_records(config)
  prepare(config.data)
  _use_one_thread()
  cache = cache_lib.Cache(config.data.cache_gib / max(1, config.data.workers))
  known = _known_embodiments(config.data, cache)
  tokenize = prompts.make_tokenizer(config.model.text)
  samplers = []
  for index, (name, dataset) in enumerate(config.data.mixture.items()):
    embodiment = known[dataset.embodiment]
    episodes = sources.Episodes(dataset.path, split or dataset.split, embodiment.record, cache)
    anchors = windows.make_anchors(
      episodes, config.data.ranges.get(name, ''), name in config.data.failures
    )
    samplers.append(
      Sampler(
        index,
        name,
        dataset.weight,
        episodes,
        anchors,
        embodiment,
        config.model,
        tokenize,
        not split,
        config.data.augment,
        cache,
      )
    )
  return [
    dataclasses.replace(s, anchors=stored[s.name], stored=stored[s.name]) if stored else s
    for s in samplers
  ]


def _known_embodiments(
  config: cfg.DataConfig, cache: cache_lib.Cache
) -> dict[str, robot_lib.Robot]:
  found: dict[str, list[normalize.Statistics]] = {name: [] for name in config.embodiments}
  for dataset in config.mixture.values():
    whole_split = dataset.split.split('[')[0]
    episodes = sources.Episodes(
      dataset.path, whole_split, embodiments.get(dataset.embodiment), cache
    )
    given = config.statistics.get(dataset.embodiment, '')
    found[dataset.embodiment].append(statistics.load_or_compute(episodes, given))
  return {
    name: robot_lib.Robot(
      i, embodiments.get(name), normalize.combine(s) if s else None, config.augment
    )
    for i, (name, s) in enumerate(found.items())
  }


def _batches(
  config: cfg.TrainConfig,
  mixture: Sequence[Sampler],
  seed: int,
  train: bool,
  shard_index: int,
  shard_count: int,
) -> grain.MapDataset:
  if config.batch_size % shard_count:
    raise ValueError(
      f'config.batch_size={config.batch_size} must be divisible by the {shard_count} hosts; '
      f'nearest valid: {max(1, round(config.batch_size / shard_count)) * shard_count}.'
    )
  # Each dataset has its own stream of shuffles: grain adds the epoch to a seed, so neighbouring
  # seeds would repeat.
  seeds = np.random.SeedSequence(seed).generate_state(2 * len(mixture))
  parts = [
    grain.MapDataset.range(len(s.anchors))
    .shuffle(seed=int(seeds[2 * i]))
    .repeat()
    .random_map(functools.partial(_draw, i), seed=int(seeds[2 * i + 1]))
    for i, s in enumerate(mixture)
  ]
  mixed = grain.MapDataset.mix(parts, [s.weight for s in mixture])
  rows = config.batch_size // shard_count
  make = functools.partial(_make, mixture, slice(shard_index * rows, (shard_index + 1) * rows))
  # Endless, so there is no remainder; without it grain divides the length in floating point and can
  # overflow.
  return mixed.batch(config.batch_size, drop_remainder=True, batch_fn=make)


def _draw(
  dataset: int, sample: int, rng: np.random.Generator
) -> tuple[int, int, np.random.Generator]:
  """What makes an example, before anything is read; grain uses its generator again, so this is a
  copy.
  """
  return dataset, sample, copy.deepcopy(rng)


def _make(
  mixture: Sequence[Sampler], rows: slice, draws: Sequence[tuple[int, int, np.random.Generator]]
) -> types.Batch:
  """This host's rows of a batch; those of other hosts are not read."""
  return _stack([mixture[dataset](sample, rng) for dataset, sample, rng in draws[rows]])


def _stack(examples: Sequence[tuple[Any, ...]]) -> types.Batch:
  films, *others = zip(*examples)
  names = (
    'action_BAU',
    'action_mask_BAU',
    'proprio_BQX',
    'chunk_mask_BQ',
    'prompt_ids_BP',
    'embodiment_B',
    'sample_B2',
  )
  stacked = dict(zip(names, map(np.stack, others), strict=True))
  if isinstance(films[0], types.Features):
    stored = jax.tree.map(lambda *x: np.stack(x), *films)
    return types.Batch(frames_BRIJ3=None, features=stored, **stacked)
  frames_BRIJ3 = np.empty((len(films), *films[0].shape), np.uint8)
  for film, frames_RIJ3 in zip(films, frames_BRIJ3):
    film.paint(frames_RIJ3)
  return types.Batch(frames_BRIJ3=frames_BRIJ3, **stacked)


def _read_ahead(batches: grain.MapDataset, config: cfg.DataConfig) -> grain.DatasetIterator:
  ahead = batches.to_iter_dataset(
    grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
  )
  if config.workers:
    if (
      not flags.FLAGS.is_parsed()
    ):  # Grain's workers read absl flags, which a notebook or a test has not parsed.
      flags.FLAGS.mark_as_parsed()
    buffer = max(1, config.prefetch // config.workers)
    options = grain.MultiprocessingOptions(
      num_workers=config.workers, per_worker_buffer_size=buffer
    )
    ahead = ahead.mp_prefetch(options, worker_init_fn=_start_worker)
  return iter(ahead)


def _start_worker(number: int, count: int) -> None:
  del number, count
  _use_one_thread()


def _use_one_thread() -> None:
  """Images are small, and the reader's threads and processes work side by side."""
  cv2.setNumThreads(1)


def _check_weights(config: cfg.DataConfig) -> None:
  wrong = {name: d.weight for name, d in config.mixture.items() if not 0 < d.weight < math.inf}
  if wrong:
    raise ValueError(
      f'config.data.mixture has weights {wrong}; every weight must be positive: remove a dataset that '
      'is not wanted.'
    )


def _check_records(config: cfg.TrainConfig) -> None:
  model, problems = config.model, []
  records = [embodiments.get(dataset.embodiment) for dataset in config.data.mixture.values()]
  cell = model.tokenizer.spatial * model.patch
  for r in records:
    if r.camera_frames_per_chunk != model.camera_frames_per_chunk:
      problems.append(
        f'{r.name} shows {r.camera_frames_per_chunk} camera frames a chunk, the model takes '
        f'frames_per_chunk * tokenizer.temporal = {model.camera_frames_per_chunk}; change either, or video_fps'
      )
    for what, got, key in (
      ('control steps a chunk', r.steps_per_chunk, 'actions_per_chunk'),
      ('action dimensions', r.action_dim, 'action_dim'),
      ('state dimensions', r.proprio_dim, 'proprio_dim'),
    ):
      if got > getattr(model, key):
        problems.append(
          f'{r.name} has {got} {what}; set model.{key} to at least that (now {getattr(model, key)})'
        )
    seen = model.tokenizer.resize or r.composite
    if any(n % cell for n in seen):
      problems.append(
        f'{r.name} shows the model {seen[0]} x {seen[1]} pixels; both must be multiples of '
        f'tokenizer.spatial * patch = {cell}'
      )
  if len({r.composite for r in records}) > 1:
    problems.append(
      'all embodiments need the same composite, got '
      + ', '.join(f'{r.name} {r.composite}' for r in records)
    )
  if problems:
    raise ValueError('The embodiments do not fit config.model:\n  ' + '\n  '.join(problems[:10]))
