"""Datasets to batches: mix, shuffle, shard by host, decode, batch, prefetch (grain).

Sample k of dataset d is a function of (seed, d, k) alone, and batch t of a function of (config, t): not of the number
of hosts, threads or workers, nor of what ran before. Indices are shuffled before anything is read.
"""
from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from typing import Any
from collections.abc import Iterator, Sequence

from absl import flags
import cv2
from etils import epath
import grain
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import storage
from wam_jax.data import transforms
from wam_jax.data import windows


def make_train_iterator(config: cfg.TrainConfig, shard_index: int = 0, shard_count: int = 1) -> grain.DatasetIterator:
  """Batches of this host, forever, computed ahead.

  Args:
    shard_index, shard_count: this host and how many there are; together the hosts' batches of a step hold the same
      samples as the one batch of a single host.
  Returns:
    An iterator over `types.Batch` of numpy arrays with `get_state()` and `set_state()` for exact resume, `close()`.
  Raises:
    ValueError: the data does not fit the config, or cannot be read; raised here wherever it can be known.
  """
  mixture = _load_mixture(config)
  batched = _batches(config, mixture, config.data.seed, True, shard_index, shard_count)
  batches = batched.to_iter_dataset(
      grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch))
  if config.data.workers:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which a notebook or a test has not parsed.
      flags.FLAGS.mark_as_parsed()
    buffer = max(1, config.data.prefetch // config.data.workers)
    batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=config.data.workers, per_worker_buffer_size=buffer))
  return iter(batches)


def make_eval_batches(config: cfg.TrainConfig, num: int, split: str = 'val', shard_index: int = 0,
                      shard_count: int = 1) -> Iterator[types.Batch]:
  """`num` held-out batches of this host, the same at every call: fixed shuffle, first instruction, no jitter.

  Normalized with the statistics of training. A split with fewer windows than are asked for is repeated.
  Raises:
    ValueError: as `make_train_iterator`, or a dataset has no such split.
  """
  mixture = _load_mixture(config, split)
  batches = _batches(config, mixture, 0, False, shard_index, shard_count)
  return (batches[i] for i in range(num))


def load_metadata(config: cfg.TrainConfig) -> dict[str, Any]:
  """JSON-ready: per embodiment its id, record and statistics; all that serving needs of the data.

  `normalize.from_metadata` turns it back into objects.
  """
  prepare(config.data)
  known = _known_embodiments(config.data, storage.Cache(0))
  return normalize.to_metadata(list(known.values()))


def prepare(config: cfg.DataConfig) -> None:
  """Runs `prepare` of every dataset whose directory is not there.

  Raises:
    ValueError: the command failed, or left no dataset.
  """
  for name, dataset in config.mixture.items():
    path = epath.Path(dataset.path).expanduser()
    if path.exists() or not dataset.prepare:
      continue
    if '{source}' in dataset.prepare and not dataset.source:
      raise ValueError(f'data.mixture.{name}.path={path} is not there, and data.mixture.{name}.source, from which it '
                       'is made, is empty; set either, as --config.data.mixture.' + name + '.source=DIR.')
    command = dataset.prepare.format(path=path, source=dataset.source)
    print(f'{path} is not there; making it: python -m {command}', file=sys.stderr)
    done = subprocess.run([sys.executable, '-m', *shlex.split(command)])
    if done.returncode or not path.exists():
      raise ValueError(f'data.mixture.{name}.prepare: python -m {command} ended with code {done.returncode} '
                       f'and {path} {"exists" if path.exists() else "does not exist"}.')


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Turns sample indices of one dataset into examples (the fields of `types.Batch`, without the batch axis).

  Attributes:
    index: of the dataset in the mixture.
    name, weight: of the dataset in the mixture.
    episodes, anchors: the dataset.
    embodiment: its robot.
    model: shapes to pad to.
    train: draw an instruction and an augmentation; otherwise the first and the centre.
    augment: whether there is any.
    cache: of decoded composite images.
  """

  index: int
  name: str
  weight: float
  episodes: sources.Episodes
  anchors: windows.Anchors
  embodiment: normalize.KnownEmbodiment
  model: cfg.ModelConfig
  train: bool
  augment: bool
  cache: storage.Cache

  def __call__(self, sample: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    number, step, stop = self.anchors[sample]
    episode = self.episodes[number]
    window = windows.make_window(self.embodiment.record, self.model.max_chunks, step, stop)
    proprio_QX, action_QSU = windows.gather(episode, self.embodiment.record, window)
    action_AU, action_mask_AU = self._actions(action_QSU, window.mask_Q)
    return (
        self._frames(number, episode, window.frame_steps_R, rng), action_AU, action_mask_AU,
        normalize.normalize_proprio(self.embodiment.statistics, proprio_QX, self.model.proprio_dim),
        window.mask_Q, self._prompt(episode.texts(step), rng), np.int32(self.embodiment.id),
        np.asarray((self.index, sample), np.int32))

  def _actions(self, action_QSU, mask_Q):
    """Normalized actions in the first S of each chunk's A rows, and which of the numbers are real."""
    Q, S, U = action_QSU.shape
    action_QAU = np.zeros((Q, self.model.actions_per_chunk, self.model.action_dim), np.float32)
    mask_QAU = np.zeros(action_QAU.shape, bool)
    mask_QAU[:, :S, :U] = mask_Q[:, None, None]
    normalized_QSU = normalize.normalize_action(self.embodiment.statistics, action_QSU, self.model.action_dim)
    action_QAU[:, :S] = normalized_QSU * mask_Q[:, None, None]
    return (x.reshape(Q * self.model.actions_per_chunk, -1) for x in (action_QAU, mask_QAU))

  def _frames(self, number, episode, steps_R, rng):
    record = self.embodiment.record
    augmentation = transforms.CENTER_CROP if self.augment else None
    if self.augment and self.train:
      augmentation = transforms.sample_augmentation(rng)
    def make(step):
      return transforms.compose(record, {v.key: episode.decode(v.key, step) for v in record.views}, augmentation)
    if self.augment and self.train:
      images = {step: make(step) for step in set(steps_R.tolist())}
      return np.stack([images[step] for step in steps_R.tolist()])
    return np.stack([self.cache.get((self.index, number, step, self.train), lambda step=step: make(step))
                     for step in steps_R.tolist()])

  def _prompt(self, texts, rng):
    texts = [text for text in texts if text.strip()] or ['']
    text = texts[rng.integers(len(texts))] if self.train and len(texts) > 1 else texts[0]
    text_config = self.model.text
    return transforms.tokenize(
        transforms.prompt(self.embodiment.record, text), text_config.length, text_config.vocab)


def _load_mixture(config: cfg.TrainConfig, split: str = '') -> list[Sampler]:
  """A sampler per dataset, on its own split for training or on `split` for evaluation."""
  if not config.data.mixture:
    raise ValueError('config.data.mixture is empty; add a dataset.')
  _check_weights(config.data)
  _check_records(config)
  prepare(config.data)
  cv2.setNumThreads(1)  # Images are small, and grain's threads work side by side.
  cache = storage.Cache(config.data.cache_gib / max(1, config.data.workers))
  known = _known_embodiments(config.data, cache)
  samplers = []
  for index, (name, dataset) in enumerate(config.data.mixture.items()):
    embodiment = known[dataset.embodiment]
    episodes = sources.Episodes(dataset.path, split or dataset.split, embodiment.record, cache)
    samplers.append(Sampler(index, name, dataset.weight, episodes, windows.make_anchors(episodes), embodiment,
                            config.model, not split, config.data.augment, cache))
  return samplers


def _known_embodiments(config: cfg.DataConfig, cache: storage.Cache) -> dict[str, normalize.KnownEmbodiment]:
  found: dict[str, list[normalize.Statistics]] = {name: [] for name in config.embodiments}
  for dataset in config.mixture.values():
    whole_split = dataset.split.split('[')[0]
    episodes = sources.Episodes(dataset.path, whole_split, embodiments.get(dataset.embodiment), cache)
    found[dataset.embodiment].append(statistics.load_or_compute(episodes))
  return {name: normalize.KnownEmbodiment(i, embodiments.get(name), normalize.combine(s) if s else None)
          for i, (name, s) in enumerate(found.items())}


def _batches(config: cfg.TrainConfig, mixture: Sequence[Sampler], seed: int, train: bool, shard_index: int,
             shard_count: int) -> grain.MapDataset:
  if config.batch_size % shard_count:
    raise ValueError(f'config.batch_size={config.batch_size} must be divisible by the {shard_count} hosts; '
                     f'nearest valid: {max(1, round(config.batch_size / shard_count)) * shard_count}.')
  # Each dataset has its own stream of shuffles: grain adds the epoch to a seed, so neighbouring seeds would repeat.
  seeds = np.random.SeedSequence(seed).generate_state(2 * len(mixture))
  parts = [
      grain.MapDataset.range(len(s.anchors)).shuffle(seed=int(seeds[2 * i])).repeat()
      .random_map(s, seed=int(seeds[2 * i + 1])) for i, s in enumerate(mixture)]
  mixed = grain.MapDataset.mix(parts, [s.weight for s in mixture])
  return mixed[shard_index::shard_count].batch(config.batch_size // shard_count, batch_fn=_stack)


def _stack(examples: Sequence[tuple[np.ndarray, ...]]) -> types.Batch:
  return types.Batch(*(np.stack(values) for values in zip(*examples)))


def _check_weights(config: cfg.DataConfig) -> None:
  wrong = {name: d.weight for name, d in config.mixture.items() if not d.weight > 0}
  if wrong:
    raise ValueError(f'config.data.mixture has weights {wrong}; every weight must be positive: remove a dataset that '
                     'is not wanted.')


def _check_records(config: cfg.TrainConfig) -> None:
  model, problems = config.model, []
  records = [embodiments.get(dataset.embodiment) for dataset in config.data.mixture.values()]
  cell = model.tokenizer.spatial * model.patch
  for r in records:
    if r.camera_frames_per_chunk != model.camera_frames_per_chunk:
      problems.append(
          f'{r.name} shows {r.camera_frames_per_chunk} camera frames a chunk, the model takes '
          f'frames_per_chunk * tokenizer.temporal = {model.camera_frames_per_chunk}; change either, or video_fps')
    for what, got, key in (('control steps a chunk', r.steps_per_chunk, 'actions_per_chunk'),
                           ('action dimensions', r.action_dim, 'action_dim'),
                           ('state dimensions', r.proprio_dim, 'proprio_dim')):
      if got > getattr(model, key):
        problems.append(f'{r.name} has {got} {what}; set model.{key} to at least that (now {getattr(model, key)})')
    if any(n % cell for n in r.composite):
      problems.append(f'{r.name} has a composite of {r.composite}; both must be multiples of tokenizer.spatial * '
                      f'patch = {cell}')
  if len({r.composite for r in records}) > 1:
    problems.append('all embodiments need the same composite, got '
                    + ', '.join(f'{r.name} {r.composite}' for r in records))
  if problems:
    raise ValueError('The embodiments do not fit config.model:\n  ' + '\n  '.join(problems[:10]))
