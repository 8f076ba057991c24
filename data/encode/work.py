"""Frozen encoders over a dataset's windows into the files of `features`; `data.encode` is the
command.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import hosts
from wam_jax import progress
from wam_jax import sharding
from wam_jax import storage
from wam_jax.data import cache as cache_lib
from wam_jax.data import images
from wam_jax.data import pipeline
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.data import samples
from wam_jax.data import scan
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.data.features import describe
from wam_jax.data.features import record_files
from wam_jax.models import encoders

CACHE_GIB = 2.0  # Neighbouring windows share episodes and frames.
MASK_CHANNELS = 4  # Stand before the condition latents, see `encoders.with_mask`.

Load = Callable[[int], np.ndarray]  # The item of a row.
Compute = Callable[[encoders.Encoders, jax.Array], jax.Array]  # The values of a batch of items.
Batch = tuple[int, range]  # A file, and the rows of it that are computed at once.


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to be stored.

  Attributes:
    episodes, anchors: the dataset.
    model: the shape of a window, and the encoders' configs.
    storing: which windows, and how they are stored.
    transform: one of `describe.TRANSFORMS`.
    samples_W: the windows, as samples of the anchor table.
    prompt_ids: [P] token ids of each prompt; none where the text encoder is trained with the model.
    cache: composite images that neighbouring windows share.
  """

  episodes: sources.Episodes
  anchors: windows.Anchors
  model: cfg.ModelConfig
  storing: record_files.Storing
  transform: str
  samples_W: np.ndarray
  prompt_ids: list[np.ndarray]
  cache: cache_lib.Cache

  @property
  def frames_shape(self) -> tuple[int, ...]:
    """The shape of what `load_frames` returns."""
    return (self.model.camera_frames(self.model.max_chunks), *self.episodes.record.composite, 3)

  def load_frames(self, row: int) -> np.ndarray:
    """[R, I, J, 3] uint8 of one variant of a window, what training would see."""
    window, variant = divmod(row, self.storing.variants)
    sample = int(self.samples_W[window])
    anchor = self.anchors[sample]
    record = self.episodes.record
    augmentation = None
    if self.transform == 'random':
      rng = np.random.default_rng((self.storing.seed, sample, variant))
      augmentation = images.sample_augmentation(rng)
    window = windows.make_window(record, self.model.max_chunks, anchor.step, anchor.stop)
    film = samples.Film(
      robot=robot_lib.Robot(0, record, None, center_crop=self.transform == 'center'),
      episode=self.episodes[anchor.episode],
      key=(anchor.episode,),
      steps_R=window.frame_steps_R,
      augmentation=augmentation,
      cache=self.cache,
    )
    frames_RIJ3 = np.empty(film.shape, np.uint8)
    film.paint(frames_RIJ3)
    return frames_RIJ3

  def pack_window(self, row: int, values: np.ndarray) -> bytes:
    """The record of one variant of a window."""
    sample = int(self.samples_W[row // self.storing.variants])
    number, step, _ = self.anchors[sample]
    return _pack(values, lambda: f'the window at step {step} of {self.episodes.where(number)}')

  def pack_prompt(self, row: int, text_PD: np.ndarray) -> bytes:
    """The record of a prompt: its real tokens."""
    ids = np.trim_zeros(self.prompt_ids[row], 'b')
    return _pack(text_PD[: len(ids)], lambda: f'the prompt with token ids {ids.tolist()}')


def _pack(values: np.ndarray, where: Callable[[], str]) -> bytes:
  # Asked for only in the message: reading where a record lies takes time.
  if not np.isfinite(values.astype(np.float32)).all():
    raise ValueError(
      'The encoders give NaN, infinity or, with --dtype=float16, more than that holds for '
      f'{where()}. Store --dtype=bfloat16, or look for what is wrong with python -m data.validate.'
    )
  return values.tobytes()


def make_job(
  model: cfg.ModelConfig,
  episodes: sources.Episodes,
  anchors: windows.Anchors,
  storing: record_files.Storing,
  transform: str,
) -> Job:
  """The windows on the grid of anchors, and their prompts.

  Raises:
    ValueError: the model takes no windows of this robot.
  """
  record = episodes.record
  if record.camera_frames_per_chunk != model.camera_frames_per_chunk:
    raise ValueError(
      f'{record.name!r} shows {record.camera_frames_per_chunk} camera frames a chunk, the model of '
      f'the workdir takes {model.camera_frames_per_chunk}; give a --workdir made for this robot.'
    )
  samples_W = select(anchors, storing)
  prompt_ids = []
  if model.text.kind == 'umt5':  # Another text encoder is trained with the model.
    prompt_ids = list_prompts(episodes, anchors, samples_W, model.text)
  return Job(
    episodes=episodes,
    anchors=anchors,
    model=model,
    storing=storing,
    transform=transform,
    samples_W=samples_W,
    prompt_ids=prompt_ids,
    cache=cache_lib.Cache(CACHE_GIB),
  )


def select(anchors: windows.Anchors, storing: record_files.Storing) -> np.ndarray:
  """[W] samples of the anchor table on the grid, in order; every stretch of anchors has at least
  one.
  """
  counts_K = np.diff(np.append(anchors.before_K, anchors.total))
  offsets_K = np.zeros_like(counts_K)
  if storing.draw_offset:
    # By episode, so that an offset does not depend on which stretches are left.
    episodes = anchors.episode_K.max() + 1
    rng = np.random.default_rng(storing.seed)
    drawn_N = rng.integers(storing.anchor_stride, size=episodes)
    offsets_K = drawn_N[anchors.episode_K] % counts_K
  stretches = [
    before + np.arange(offset, count, storing.anchor_stride)
    for before, offset, count in zip(anchors.before_K, offsets_K, counts_K)
  ]
  return np.concatenate(stretches)


def list_prompts(
  episodes: sources.Episodes, anchors: windows.Anchors, samples_W: np.ndarray, text: cfg.TextConfig
) -> list[np.ndarray]:
  """[P] token ids of each different prompt that training may draw for these windows."""
  tokenize = prompts.make_tokenizer(text)
  steps: dict[int, list[int]] = {}
  for sample in samples_W.tolist():
    number, step, _ = anchors[sample]
    steps.setdefault(number, []).append(step)

  found = {}
  outlines = scan.read_ahead(episodes, list(steps))
  label = f'prompts of {episodes.path}'
  for number, outline in zip(steps, progress.track(outlines, label, len(steps), 'episodes')):
    for span in outline.spans:
      if not any(span.start <= step < span.stop for step in steps[number]):
        continue
      # Training draws among the instructions that are not blank; with none it says nothing.
      for instruction in [text for text in span.texts if text.strip()] or ['']:
        ids_P = tokenize(episodes.record.instruct(instruction))
        found.setdefault(describe.hash_prompt(ids_P), ids_P)
  return list(found.values())


def encode_prompts(dtype: str, frozen: encoders.Encoders, ids_BP: jax.Array) -> jax.Array:
  """[B, P, D] embeddings in `dtype`."""
  return frozen.text.encode(ids_BP).astype(dtype)


def encode_windows(dtype: str, frozen: encoders.Encoders, frames_BRIJ3: jax.Array) -> jax.Array:
  """[B, numbers] records in `dtype`."""
  parts = window_parts(frozen, frames_BRIJ3)
  flat = [parts[name].reshape(len(frames_BRIJ3), -1).astype(dtype) for name in sorted(parts)]
  return jnp.concatenate(flat, 1)


def window_parts(frozen: encoders.Encoders, frames_BRIJ3: jax.Array) -> dict[str, jax.Array]:
  """What is stored of windows, by name; encoders that a model lacks give nothing."""
  condition = frozen.encode_condition(frames_BRIJ3[:, :1])
  parts = {'clean': frozen.encode(frames_BRIJ3)}
  if condition.image_BIC is not None:
    parts['image'] = condition.image_BIC
  if condition.latents_BFHWC is not None:
    # Without the mask, which is always the same.
    parts['condition'] = condition.latents_BFHWC[..., MASK_CHANNELS:]
  return parts


@dataclasses.dataclass(frozen=True)
class Machine:
  """This process's devices, and how they are fed.

  Attributes:
    mesh: the devices.
    batch: the number of items computed at once, shared by the devices.
    threads: the number of threads that load them.
  """

  mesh: jax.sharding.Mesh
  batch: int
  threads: int

  def place(self, frozen: encoders.Encoders) -> encoders.Encoders:
    """The encoders on the devices, large arrays split over them."""
    return sharding.place(frozen, self._split(frozen))

  def place_shapes(self, frozen: encoders.Encoders) -> encoders.Encoders:
    """Encoders of ShapeDtypeStructs, with the shardings that `place` gives."""
    return jax.tree.map(
      lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
      frozen,
      self._split(frozen),
    )

  def _split(self, frozen: encoders.Encoders) -> encoders.Encoders:
    return sharding.frozen_shardings(frozen, self.mesh, cfg.DEFAULT_RULES)

  def store(
    self,
    files: record_files.Files,
    numbers: Sequence[int],
    load: Load,
    compute: Compute,
    frozen: encoders.Encoders,
    pack: Callable[[int, np.ndarray], bytes],
  ) -> dict[str, float]:
    """Writes the record files `numbers`; returns how many records that are, and how long it took.

    Args:
      load: gives the item of a row of the files.
      compute: gives the values of the items of a batch.
      pack: gives the record of (row, its values).
    """
    # A file begins with a batch of its own: what it holds must not depend on where an earlier call
    # stopped.
    batches = []
    for number in numbers:
      rows = files.rows(number)
      batches += [(number, rows[i : i + self.batch]) for i in range(0, len(rows), self.batch)]
    if not batches:
      return dict(records=0, compile_s=0.0, seconds=0.0, per_s=0.0)

    start_s = time.monotonic()
    _, (first, *_) = batches[0]
    program = self._compile(compute, frozen, load(first))
    compiled_s = time.monotonic()

    total = sum(len(rows) for _, rows in batches)
    computed = progress.track(
      self._compute(batches, load, program),
      f'encoding {files.kind}',
      total,
      files.kind,
      amount=lambda batch: len(batch[1]),
    )
    for number, parts in itertools.groupby(computed, key=lambda batch: batch[0]):
      rows_and_values = (pair for _, rows, values in parts for pair in zip(rows, values))
      files.write(number, itertools.starmap(pack, rows_and_values))
    seconds = time.monotonic() - compiled_s
    return dict(
      records=total, compile_s=compiled_s - start_s, seconds=seconds, per_s=total / seconds
    )

  def _compile(
    self, compute: Compute, frozen: encoders.Encoders, item: np.ndarray
  ) -> Callable[[np.ndarray], jax.Array]:
    """`compute` of a batch of items like this one, with these encoders."""
    split = sharding.batch_sharding(self.mesh, cfg.DEFAULT_RULES)
    batch = jax.ShapeDtypeStruct((self.batch, *item.shape), item.dtype, sharding=split)
    with sharding.activate(self.mesh, cfg.DEFAULT_RULES):
      program = jax.jit(compute, out_shardings=split).lower(frozen, batch).compile()
    return lambda batch: program(frozen, jax.device_put(batch, split))

  def _compute(
    self, batches: Sequence[Batch], load: Load, program: Callable[[np.ndarray], jax.Array]
  ) -> Iterator[tuple[int, range, np.ndarray]]:
    """(file, rows, values of each) of every batch, in order."""

    def load_batch(batch: Batch) -> np.ndarray:
      rows = list(batch[1])
      # The program has one shape: the last batch of a file is filled with its last row.
      rows += rows[-1:] * (self.batch - len(rows))
      return np.stack([load(row) for row in rows])

    ahead = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads + 1)
    loaded = grain.MapDataset.source(batches).map(load_batch).to_iter_dataset(ahead)
    under_way = collections.deque()
    for (number, rows), items in zip(batches, loaded):
      under_way.append((number, rows, program(items)))
      if len(under_way) == 2:  # The devices compute one batch while the one before is stored.
        yield _fetch(*under_way.popleft())
    yield from itertools.starmap(_fetch, under_way)


def _fetch(number: int, rows: range, values: jax.Array) -> tuple[int, range, np.ndarray]:
  return number, rows, jax.device_get(values)


def find_held_out(config: cfg.TrainConfig, dataset: str) -> str:
  """The split of a dataset that a run with this config keeps from training.

  Raises:
    ValueError: the run does not train on it.
  """
  path = storage.make_path(dataset)
  for name, trained in config.data.mixture.items():
    if storage.make_path(trained.path) == path:
      return pipeline.choose_split(config, name, pipeline.HELD_OUT)
  known = [trained.path for trained in config.data.mixture.values()]
  raise ValueError(
    f'--held_out: the run at --workdir does not train on {dataset}; it has {known}. Name the split '
    'with --split.'
  )


def make_machine(batch: int, threads: int) -> Machine:
  """This process's devices.

  Args:
    batch: the number of items at once, 0 for 8 a device.
    threads: see `Machine`.
  Raises:
    ValueError: the devices do not divide it.
  """
  devices = jax.local_devices()
  batch = batch or 8 * len(devices)
  if batch % len(devices):
    raise ValueError(
      f'--batch={batch} must be divisible by the {len(devices)} devices; nearest valid: '
      f'{max(1, round(batch / len(devices))) * len(devices)}.'
    )
  # The encoders of the large models do not fit one device.
  mesh = sharding.make_mesh({'data': 1, 'fsdp': -1, 'tensor': 1, 'seq': 1}, devices)
  return Machine(mesh, batch, threads)


def encode(
  job: Job,
  frozen: encoders.Encoders,
  hashes: Mapping[str, str],
  machine: Machine,
  shard_index: int = 0,
  shard_count: int = 1,
) -> dict[str, Any]:
  """Stores what is missing of a job, or this process's share of it; returns a JSON-ready summary.

  Args:
    frozen: the encoders, of NumPy's arrays or on the devices as `Machine.place` gives them.
    hashes: what `encoders.fingerprint` gives for them.
  Raises:
    ValueError: other features are in the way; no room; an encoder gives NaN.
  """
  description = describe.make_description(
    job.episodes, job.anchors, job.model, hashes, job.transform
  )
  frozen = machine.place(frozen)
  directory = describe.choose_directory(job.episodes, description)
  one = jax.ShapeDtypeStruct((1, *job.frames_shape), np.uint8)
  shapes = {name: x.shape[1:] for name, x in jax.eval_shape(window_parts, frozen, one).items()}
  plan = record_files.make_plan(
    description,
    job.storing,
    shapes=shapes,
    samples_W=job.samples_W,
    prompt_ids=job.prompt_ids,
    text_dim=job.model.text.dim,
  )
  record_files.begin(directory, plan, job.samples_W, job.prompt_ids)
  files = record_files.list_files(directory, plan)
  _check_room(plan, files)

  # Listed before the first one is written: shards that start at once share the same list.
  share = {kind: f.list_missing(shard_index, shard_count) for kind, f in files.items()}
  texts = machine.store(
    files['prompts'],
    share['prompts'],
    load=job.prompt_ids.__getitem__,
    compute=functools.partial(encode_prompts, job.storing.dtype),
    frozen=frozen,
    pack=job.pack_prompt,
  )
  frozen = frozen.replace(text=None)  # Makes room on the devices.
  videos = machine.store(
    files['windows'],
    share['windows'],
    load=job.load_frames,
    compute=functools.partial(encode_windows, job.storing.dtype),
    frozen=frozen,
    pack=job.pack_window,
  )
  # Processes of one job end together: the last one finds every file, none loses its coordinator.
  hosts.exchange('storing features', None, hosts.FOREVER_S)
  missing = record_files.finish(directory)
  return dict(
    dataset=str(job.episodes.path),
    split=job.episodes.split,
    embodiment=job.episodes.record.name,
    place=str(directory),
    transform=description['transform'],
    windows=len(job.samples_W),
    variants=job.storing.variants,
    prompts=len(job.prompt_ids),
    bytes=_count_bytes(files),
    missing_files=len(missing),
    encoded_prompts=texts,
    encoded_windows=videos,
  )


def _count_bytes(files: dict[str, record_files.Files]) -> int:
  """The bytes of the files that are there, whoever wrote them."""
  there = storage.list_files(files['windows'].directory)
  names = [f.path(number).name for f in files.values() for number in range(len(f))]
  return sum(there.get(name, 0) for name in names)


def _check_room(plan: dict[str, Any], files: dict[str, record_files.Files]) -> None:
  """Says how much is missing, and raises unless it fits on the disk."""
  needed = sum(
    plan['files'][kind]['bytes'] * len(f.list_missing()) / max(1, len(f))
    for kind, f in files.items()
  )
  directory = files['windows'].directory
  progress.say(f'about {needed / 2**30:.1f} GiB to store in {directory}')
  if storage.is_remote(directory):
    return
  free = shutil.disk_usage(directory).free
  if needed > free:
    raise ValueError(
      f'{directory} needs about {needed / 2**30:.1f} GiB more, and {free / 2**30:.1f} GiB are '
      'free. Make room, or store fewer windows: a larger --anchor_stride, fewer --augmentations.'
    )
