"""Datasets to batches: mix, shuffle, choose a host's rows, decode, batch, prefetch (grain).

Sample k of dataset d is a function of (seed, d, k) alone, and batch t of a function of (config, t):
not of the number of hosts, threads or workers, nor of what ran before. Where a run stands is
therefore one number, and a run may go on with another number of hosts or workers. Indices are
shuffled before anything is read, and the frames of a sample are decoded, each once, into the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.data import access
from wam_jax.data import cache as cache_lib
from wam_jax.data import choice as choice_lib
from wam_jax.data import comparison
from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import overlap
from wam_jax.data import prepare
from wam_jax.data import prompts
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.data import roster as roster_lib
from wam_jax.data import samples
from wam_jax.data import scan
from wam_jax.data import shapes
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import texts
from wam_jax.data import windows
from wam_jax.data.features import describe
from wam_jax.data.features import lookup

# In place of a split's name: the one that each dataset of the mixture trains on, or keeps from it.
TRAINING = ''
HELD_OUT = 'held out'


class Batches(Iterator[types.Batch]):
  """Batches of one host, forever, computed ahead; close it when done.

  Args:
    batches: fields of batch t of this host.
  """

  def __init__(self, batches: grain.MapDataset, config: cfg.DataConfig):
    self._batches = batches
    self._config = config
    self._step = 0
    # Nothing is read before the first batch is asked for.
    self._iterator: grain.DatasetIterator | None = None

  def __next__(self) -> types.Batch:
    if self._iterator is None:
      self._iterator = _read_ahead(self._batches[self._step :], self._config)
    fields = next(self._iterator)
    self._step += 1
    return _make_batch(fields)

  def read(self, step: int) -> types.Batch:
    """Batch `step`, computed now; the iterator stays where it is."""
    return _make_batch(self._batches[step])

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
        f'Not the state of a data iterator: {state}; expected next_index, the number of batches '
        'taken.'
      )
    self.close()
    self._step = int(state['next_index'])

  def close(self) -> None:
    """Ends threads and worker processes."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


class OpenDatasets:
  """The datasets of a mixture, each opened once, as is each split of them, with one cache for all.

  Args:
    config: whose datasets they are.
    records: that of each dataset.
    keeps: whether what is found out about a dataset may be written beside it.
  """

  def __init__(
    self,
    config: cfg.DataConfig,
    records: Mapping[str, record_lib.Embodiment],
    keeps: bool = True,
  ):
    self._config = config
    self.records = records
    self._keeps = keeps
    # By directory and file of exclusions.
    self._datasets: dict[tuple[str, str], sources.Dataset] = {}
    # Every worker process has a cache of its own.
    self.cache = cache_lib.Cache(config.cache_gib / max(1, config.workers))

  def get(self, name: str, split: str) -> sources.Episodes:
    """The episodes of a split of the dataset `name` of the mixture, opened at the first call.

    Raises:
      ValueError: there is no such split, or the dataset cannot be read.
    """
    dataset, exclude = self._config.mixture[name], self._config.exclude.get(name, '')
    path = dataset.path
    if (path, exclude) not in self._datasets:
      self._datasets[path, exclude] = sources.Dataset(path, self.cache, self._keeps, exclude)
    choice = choice_lib.Choice(
      ranges=self._config.ranges.get(name, ''),
      failures=name in self._config.failures,
      labeled=name in self._config.skip_unlabeled,
    )
    return self._datasets[path, exclude].open(split, self.records[name], choice, dataset.given)

  def forget_ends(self) -> None:
    """Frees what is needed to open splits only; others can still be opened."""
    for dataset in self._datasets.values():
      dataset.forget_ends()


@dataclasses.dataclass(frozen=True)
class Data:
  """The datasets of a config, each opened once a split, whoever asks for them. Made by `open`.

  Attributes:
    config: whose datasets they are.
    opened: the datasets and their splits that are open.
    records: that of each dataset.
    robots: by name of their record, in the order of `config.data.embodiments`, with the statistics
      of what is trained on.
    notes: what a person should know of the choice of rows and statistics, a line each.
    tokenize: prompt to ids.
    hashes: of the encoders whose stored features stand for pixels; None for pixels.
    mixtures: by split, a sampler of each dataset; holds those that are open.
  """

  config: cfg.TrainConfig
  opened: OpenDatasets
  records: Mapping[str, record_lib.Embodiment]
  robots: Mapping[str, robot_lib.Robot]
  tokenize: Callable[[str], np.ndarray]
  notes: Sequence[str] = ()
  hashes: Mapping[str, str] | None = None
  mixtures: dict[str, list[samples.Sampler]] = dataclasses.field(default_factory=dict)

  @classmethod
  def open(
    cls,
    config: cfg.TrainConfig,
    splits: Sequence[str] = (TRAINING,),
    known: roster_lib.Known | None = None,
  ) -> Data:
    """Makes what is missing (`prepare`), and opens the datasets.

    Args:
      splits: which are opened now, so that what is wrong with them is said now; others are opened
        when they are asked for.
      known: the robots of the weights that the run starts from, which keep their rows.
    Raises:
      ValueError: the data does not fit the config, or cannot be read; raised here wherever it can
        be known.
    """
    _check_mixture(config.data)
    # Before anything is made, unless records are made with the datasets.
    if roster_lib.are_readable(config.data):
      shapes.check_robots(config.model, roster_lib.read(config.data).datasets.values())
    prepare.make_missing(config.data)
    roster = roster_lib.read(config.data)
    shapes.check_robots(config.model, roster.datasets.values())
    count = config.model.num_embodiments
    rows = roster_lib.assign_rows(config.data, list(roster.robots), known, count)

    opened = OpenDatasets(config.data, roster.datasets)
    data = cls(
      config=config,
      opened=opened,
      records=roster.datasets,
      robots={},
      tokenize=prompts.make_tokenizer(config.model.text),
    )
    if TRAINING in splits:
      for name in config.data.mixture:
        access.check(name, data.get_episodes(name, TRAINING), opened.cache.limit)
    of_datasets = _read_statistics(config, opened, splits)
    found = _combine(roster, of_datasets)
    chosen, notes = _choose_statistics(config, roster, found, known)
    notes += _keep_own_statistics(data, chosen, known)
    if known and not known.is_own:
      notes.insert(0, roster_lib.describe_rows(rows, known))
    robots = {
      name: robot_lib.Robot(
        id=rows[name],
        record=record,
        statistics=chosen[name],
        center_crop=config.data.augment,
        action_overlap=config.model.action_overlap,
      )
      for name, record in roster.robots.items()
    }
    if TRAINING in splits:
      notes += data.list_cut_prompts()
    data = dataclasses.replace(data, robots=robots, notes=[*notes, *_tell_files(config.data)])
    data.open_mixtures(splits)
    return dataclasses.replace(data, notes=[*data.notes, *data.list_left_out()])

  @classmethod
  def open_known(
    cls,
    config: cfg.TrainConfig,
    robots: Mapping[str, robot_lib.Robot],
    of_datasets: Mapping[str, str],
    splits: Sequence[str],
  ) -> Data:
    """The datasets as robots of a checkpoint see them: with the records, rows and statistics that
    it was trained with, whatever lies beside the data, where nothing is written.

    Args:
      robots: by name.
      of_datasets: the robot's name, by dataset of the mixture.
      splits: as in `open`.
    Raises:
      ValueError: as `open`.
    """
    _check_mixture(config.data)
    prepare.make_missing(config.data)
    records = {name: robots[robot].record for name, robot in of_datasets.items()}
    shapes.check_robots(config.model, records.values())
    data = cls(
      config=config,
      opened=OpenDatasets(config.data, records, keeps=False),
      records=records,
      robots=robots,
      tokenize=prompts.make_tokenizer(config.model.text),
    )
    data.open_mixtures(splits)
    return dataclasses.replace(data, notes=data.list_left_out())

  def list_left_out(self) -> list[str]:
    """A line for each split that is open and of which something is left out."""
    lines = [
      windows.describe_left_out(sampler.episodes, sampler.anchors)
      for mixture in self.mixtures.values()
      for sampler in mixture
    ]
    return [line for line in dict.fromkeys(lines) if line]

  def list_cut_prompts(self) -> list[str]:
    """A sentence for each dataset some prompts of which are longer than the text encoder reads."""
    sentences = []
    for name in self.config.data.mixture:
      episodes = self.get_episodes(name, TRAINING)
      found = texts.load(episodes)
      cut = texts.find_cut(found, episodes.record, self.config.model.text)
      if cut:
        sentences.append(cut.describe(f'split {episodes.split!r} of {name}'))
    return sentences

  def open_mixtures(self, splits: Sequence[str]) -> None:
    """Opens these splits, and forgets what only that needs."""
    images.use_one_thread()
    for split in splits:
      self.open_mixture(split)
    self.opened.forget_ends()

  def get_episodes(self, name: str, split: str) -> sources.Episodes:
    """The episodes of a dataset in a split, which may be TRAINING or HELD_OUT."""
    return self.opened.get(name, choose_split(self.config, name, split))

  @property
  def metadata(self) -> dict[str, Any]:
    """JSON-ready: per embodiment its id, record and statistics, all that serving needs of the data;
    of each dataset that is trained on a fingerprint of its windows, and what its episodes are; and
    the names of the features that are trained on, by dataset, where there are any.

    `robot.from_metadata` turns it back into objects.
    """
    metadata = robot_lib.to_metadata(list(self.robots.values()))
    mixture = self.mixtures.get(TRAINING, ())
    if mixture:
      metadata['windows'] = {s.name: s.anchors.fingerprint for s in mixture}
      metadata['episodes'] = {s.name: _describe_episodes(s.episodes) for s in mixture}
    if stored := {s.name: s.stored.directory.name for s in mixture if s.stored}:
      metadata['features'] = stored
    return metadata

  def describe_datasets(self) -> dict[str, Any]:
    """JSON-ready: by dataset, its robot and which episodes are trained on."""
    return {
      sampler.name: {
        'robot': sampler.robot.record.name,
        'path': str(sampler.episodes.path),
        'split': sampler.episodes.split,
        'parts': sampler.episodes.parts,
      }
      for sampler in self.open_mixture()
    }

  def list_overlaps(self, split: str, trained: Mapping[str, Any]) -> list[str]:
    """A sentence for each dataset of which `split` shares episodes with what is `trained` on, as
    `describe_datasets` gives it.
    """
    sentences = []
    for sampler in self.open_mixture(split):
      episodes = sampler.episodes
      where = f'split {episodes.split!r} of {sampler.name}'
      sentences.append(overlap.describe(where, episodes.parts, trained))
    return [sentence for sentence in sentences if sentence]

  def open_mixture(self, split: str = TRAINING) -> list[samples.Sampler]:
    """A sampler of each dataset on this split, opened at the first call.

    Raises:
      ValueError: a dataset has no such split, no window, or features of something else.
    """
    if split not in self.mixtures:
      mixture = [
        self._make_sampler(index, name, split)
        for index, name in enumerate(self.config.data.mixture)
      ]
      self.mixtures[split] = _take_features(self.config, self.hashes, split, mixture)
    return self.mixtures[split]

  def train_batches(self, rows: Sequence[int] | None = None) -> Batches:
    """Batches of this host, forever, computed ahead.

    Args:
      rows: those of the batch of all hosts that this one reads, in this order; None for all. Hosts
        may read the same rows; `sharding.HostBatch` says which are whose.
    """
    batches = _mix(self.open_mixture(), self.config.batch_size, self.config.data.seed, rows)
    return Batches(batches, self.config.data)

  def eval_batches(
    self, split: str, num: int, rows: Sequence[int] | None = None
  ) -> Iterator[types.Batch]:
    """`num` held-out batches of this host, the same at every call: fixed shuffle, first
    instruction, no jitter. Each is decoded when it is taken.

    Normalized with the statistics of training. A split with fewer windows than are asked for is
    repeated.

    Args:
      rows: as of `train_batches`.
    Raises:
      ValueError: a dataset has no such split.
    """
    batches = _mix(self.open_mixture(split), self.config.batch_size, 0, rows)
    return (_make_batch(batches[step]) for step in range(num))

  def may_have_features(self) -> bool:
    """Whether `with_features` has a use for the encoders' hashes, which are costly to compute."""
    mode = self.config.data.features
    if mode != 'auto':
      return mode == 'require'
    return any(lookup.are_beside(sampler.episodes) for sampler in self.open_mixture())

  def with_features(self, hashes: Mapping[str, str]) -> Data:
    """The same datasets, with what `python -m data.encode` stored of them by these encoders in
    place of pixels; as they are where nothing was stored.

    `config.data.features` says whether there must be any; held-out splits need none.

    Args:
      hashes: of the encoders' weights, from `models.encoders.fingerprint`.
    Raises:
      ValueError: features are there and of something else, or of some of the datasets only.
    """
    data = dataclasses.replace(self, hashes=hashes, mixtures={})
    for split, mixture in self.mixtures.items():
      data.mixtures[split] = _take_features(self.config, hashes, split, mixture)
    return data

  def _make_sampler(self, index: int, name: str, split: str) -> samples.Sampler:
    config = self.config.data
    episodes = self.get_episodes(name, split)
    return samples.Sampler(
      index=index,
      name=name,
      weight=config.mixture[name].weight,
      episodes=episodes,
      anchors=windows.make_anchors(episodes),
      robot=self.robots[self.records[name].name],
      model=self.config.model,
      tokenize=self.tokenize,
      train=split == TRAINING,
      cache=self.opened.cache,
    )


def _take_features(
  config: cfg.TrainConfig,
  hashes: Mapping[str, str] | None,
  split: str,
  mixture: Sequence[samples.Sampler],
) -> list[samples.Sampler]:
  """The samplers, of stored features where there are some of the encoders with these hashes."""
  mode = config.data.features
  if hashes is None or mode == 'off':
    return list(mixture)
  stored = lookup.find_all(
    {sampler.name: (sampler.episodes, sampler.anchors) for sampler in mixture},
    config.model,
    hashes,
    describe.choose_transform(config.data.augment, split == TRAINING),
    required=mode == 'require' and split == TRAINING,
  )
  return [dataclasses.replace(sampler, stored=stored.get(sampler.name)) for sampler in mixture]


def list_unread(
  config: cfg.TrainConfig, opened: OpenDatasets, splits: Sequence[str] = (TRAINING,)
) -> list[str]:
  """The datasets of which not everything is kept that `Data.open` needs to know of each episode,
  and which it would therefore read whole.
  """
  computed, others = _list_findings(config, opened, splits)
  unread = {name for name, finding in (*computed.items(), *others) if not finding.load()}
  return [name for name in config.data.mixture if name in unread]


def list_statistics_commands(
  config: cfg.TrainConfig, opened: OpenDatasets, splits: Sequence[str]
) -> list[str]:
  """The commands that make what these splits need to know of their episodes."""
  overlap = config.model.action_overlap
  reach = f' --action_overlap={overlap}' if overlap else ''
  commands = []
  for name, dataset in config.data.mixture.items():
    for split in splits:
      episodes = opened.get(name, choose_split(config, name, split))
      robot = f' --embodiment={shlex.quote(dataset.embodiment)}' if dataset.embodiment else ''
      which = '' if episodes.split == 'train' else f' --split={shlex.quote(episodes.split)}'
      commands.append(
        f'python -m data.statistics --dataset={shlex.quote(dataset.path)}{robot}{which}{reach}'
        f'{episodes.write_flags()}'
      )
  return list(dict.fromkeys(commands))


def _list_findings(
  config: cfg.TrainConfig, opened: OpenDatasets, splits: Sequence[str]
) -> tuple[dict[str, statistics.Finding], list[tuple[str, scan.Finding]]]:
  """By dataset, its statistics, unless a file takes their place; and (dataset, what else these
  splits need of their episodes).
  """
  computed: dict[str, statistics.Finding] = {}
  others: list[tuple[str, scan.Finding]] = []
  data = config.data
  for name, dataset in data.mixture.items():
    if data.statistics.get(opened.records[name].name, '') in ('', roster_lib.BASE):
      episodes = opened.get(name, dataset.split)
      computed[name] = statistics.Finding(episodes, config.model.action_overlap)
    if TRAINING in splits:
      others.append((name, texts.Texts(opened.get(name, dataset.split))))
    for split in splits:
      episodes = opened.get(name, choose_split(config, name, split))
      others += [(name, each) for each in windows.list_findings(episodes)]
  return computed, others


def choose_split(config: cfg.TrainConfig, name: str, split: str) -> str:
  """The TFDS split of a dataset that TRAINING, HELD_OUT, or a split by name stands for."""
  dataset = config.data.mixture[name]
  if split == HELD_OUT:
    return dataset.held_out or config.evaluation.split
  return split or dataset.split


def _read_statistics(
  config: cfg.TrainConfig, opened: OpenDatasets, splits: Sequence[str]
) -> dict[str, normalize.Statistics]:
  """The statistics of each dataset.

  What else these splits need of their episodes is found in the same pass, and kept.
  """
  computed, others = _list_findings(config, opened, splits)
  prepare.complete_findings([*computed.values(), *(finding for _, finding in others)])
  found = {}
  for name in config.data.mixture:
    if name in computed:
      found[name] = computed[name].statistics
    else:
      record = opened.records[name]
      file = config.data.statistics[record.name]
      found[name] = statistics.load(file, record, config.model.action_overlap)
  return found


def _combine(
  roster: roster_lib.Roster, of_datasets: Mapping[str, normalize.Statistics]
) -> dict[str, normalize.Statistics | None]:
  """By robot, the statistics over all of its datasets; None where it has none."""
  parts: dict[str, list[normalize.Statistics]] = {name: [] for name in roster.robots}
  for name, record in roster.datasets.items():
    parts[record.name].append(of_datasets[name])
  return {name: normalize.combine(each) if each else None for name, each in parts.items()}


def _choose_statistics(
  config: cfg.TrainConfig,
  roster: roster_lib.Roster,
  found: Mapping[str, normalize.Statistics | None],
  known: roster_lib.Known | None,
) -> tuple[dict[str, normalize.Statistics | None], list[str]]:
  """By robot, the statistics that training uses, and lines on how those of the base differ."""
  data = config.data
  chosen = dict(found)
  notes = []
  for name, own in found.items():
    of_base = known.robots.get(name) if known else None
    if _is_of_earlier_version(known, of_base, own):
      # Else no run of before could go on; that its data are the same, its windows say.
      chosen[name] = of_base.statistics
      notes.append(
        f'{name} goes on with the statistics of its checkpoint, of an earlier version, which '
        'counted the steps that no chunk holds, too'
      )
      notes += comparison.describe(roster.robots[name], of_base.statistics, own, known.where)
    wants_base = data.statistics.get(name, '') == roster_lib.BASE or (
      data.statistics_of == roster_lib.BASE and not data.statistics.get(name)
    )
    if wants_base and own is not None:
      if of_base is None or of_base.statistics is None:
        where = known.where if known else 'nothing that it starts from'
        raise ValueError(
          f'{name!r} is to have the statistics of the base, but {where} has none of it; set '
          "config.data.statistics_of='data'."
        )
      comparison.check_same_numbers(of_base.record, roster.robots[name], known.where)
      comparison.check_reach(
        record=roster.robots[name],
        overlap=config.model.action_overlap,
        of_base=of_base.action_overlap,
        where=known.where,
      )
      chosen[name] = of_base.statistics
    if known is None or known.is_own or own is None or of_base is None or not of_base.statistics:
      continue
    taken = f'those of {known.where}' if wants_base else 'those of its data'
    notes.append(f'{name} is normalized by {taken}')
    notes += comparison.describe(roster.robots[name], of_base.statistics, own, known.where)
  return chosen, notes


def _describe_episodes(episodes: sources.Episodes) -> dict[str, str]:
  """Which episodes these are: the dataset's, and what is left out of it."""
  return {'dataset': episodes.base_fingerprint, 'excluded': episodes.excluded}


def _keep_own_statistics(
  data: Data, chosen: dict[str, normalize.Statistics | None], known: roster_lib.Known | None
) -> list[str]:
  """A run that goes on without an episode which it had, or with one more, keeps its statistics: a
  sentence for each dataset of which that is so.
  """
  if not known or not known.is_own:
    return []
  notes = []
  for name, record in data.records.items():
    now = _describe_episodes(data.get_episodes(name, TRAINING))
    own = known.robots.get(record.name)
    if own and own.statistics and known.has_other_exclusions(name, now):
      chosen[record.name] = own.statistics
      notes.append(
        f'{name}: what is left out has changed since {known.where} was last saved; the run goes on '
        'with the statistics of before, and its samples come in another order'
      )
  return notes


def _is_of_earlier_version(
  known: roster_lib.Known | None,
  of_base: robot_lib.Robot | None,
  own: normalize.Statistics | None,
) -> bool:
  """Whether a run that goes on was begun with statistics as no longer computed."""
  if not (known and known.is_own and of_base and of_base.statistics and own):
    return False
  return of_base.statistics.rows != own.rows


def _tell_files(config: cfg.DataConfig) -> list[str]:
  """What the statistics files that a config names are of, a line each."""
  return [
    f'{robot} is normalized by {file}: {statistics.describe_file(file)}'
    for robot, file in config.statistics.items()
    if file not in ('', roster_lib.BASE)
  ]


def _mix(
  mixture: Sequence[samples.Sampler], batch_size: int, seed: int, rows: Sequence[int] | None
) -> grain.MapDataset:
  """Endless batches of the mixture: for each, the fields of `rows`, or of all."""
  # Each dataset has its own stream of shuffles: grain adds the epoch to a seed, so neighbouring
  # seeds would repeat.
  seeds = np.random.SeedSequence(seed).generate_state(2 * len(mixture)).tolist()
  draws = [
    grain.MapDataset.range(len(sampler))
    .shuffle(seed=shuffle_seed)
    .repeat()
    .random_map(functools.partial(samples.make_draw, sampler.index), seed=draw_seed)
    for sampler, shuffle_seed, draw_seed in zip(mixture, seeds[::2], seeds[1::2])
  ]
  mixed = grain.MapDataset.mix(draws, [sampler.weight for sampler in mixture])
  rows = range(batch_size) if rows is None else tuple(rows)
  make_rows = functools.partial(samples.make_rows, mixture, rows)
  # Endless, so there is no remainder; without it grain divides the length in floating point and can
  # overflow.
  return mixed.batch(batch_size, drop_remainder=True, batch_fn=make_rows)


def _make_batch(fields: Mapping[str, Any]) -> types.Batch:
  """The batch of these fields, with pixels or features as there are."""
  stored = fields.get('features')
  return types.Batch(
    **{'frames_BRIJ3': None, **fields, 'features': stored and types.Features(**stored)}
  )


def _read_ahead(batches: grain.MapDataset, config: cfg.DataConfig) -> grain.DatasetIterator:
  options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
  ahead = batches.to_iter_dataset(options)
  if not config.workers:
    return iter(ahead)
  # Grain's workers read absl flags, which a notebook or a test has not parsed.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  workers = grain.MultiprocessingOptions(
    num_workers=config.workers,
    per_worker_buffer_size=max(1, config.prefetch // config.workers),
  )
  return iter(ahead.mp_prefetch(workers, worker_init_fn=samples.start_worker))


def _check_mixture(config: cfg.DataConfig) -> None:
  if not config.mixture:
    raise ValueError('config.data.mixture is empty; add a dataset.')
  wrong = {name: d.weight for name, d in config.mixture.items() if not 0 < d.weight < math.inf}
  if wrong:
    raise ValueError(
      f'config.data.mixture has weights {wrong}; every weight must be positive: remove a dataset '
      'that is not wanted.'
    )
