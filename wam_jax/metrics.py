"""Where numbers of a run go: metrics.jsonl, timing.jsonl, TensorBoard and Weights & Biases.
Also owns the speed of training, which progress.py shows.

metrics.jsonl holds only what the config determines, so that a run that was killed and resumed
writes the same file as one that was not; everything that depends on the clock goes elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import tensorboardX

from wam_jax import config as cfg
from wam_jax import progress
from wam_jax import storage
from wam_jax import strict_json


class MetricsWriter:
  """Appends one line per call to WORKDIR/metrics.jsonl and timing.jsonl, and the same scalars to
  TensorBoard.
  """

  def __init__(self, workdir: pathlib.Path, step: int, boards: Sequence[Any] = ()):
    """Continues after `step` (0 for a new run): what a killed run wrote later is dropped, it will
    be written again.

    Args:
      boards: runs of `wandb_run` that are shown the same scalars.
    """
    self._boards = boards
    drop_after(workdir / 'metrics.jsonl', step)
    drop_after(workdir / 'timing.jsonl', step)
    # Opened once for the run, after `drop_after` has replaced them.
    self._metrics = (workdir / 'metrics.jsonl').open('a')
    self._timing = (workdir / 'timing.jsonl').open('a')
    self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

  def write(self, step: int, scalars: Mapping[str, float], timing: Mapping[str, float]) -> None:
    """`scalars` are determined by config and step; `timing` is not. Non-finite values become
    null.
    """
    _append(self._metrics, step, scalars)
    _append(self._timing, step, timing)
    for name, value in (*scalars.items(), *timing.items()):
      self._board.add_scalar(name, value, step)
    for board in self._boards:
      board.log({**scalars, **timing}, step=step)

  def close(self) -> None:
    self._metrics.close()
    self._timing.close()
    self._board.close()


class Record:
  """What a run writes down beside its checkpoints, on its first process."""

  def __init__(self, files: storage.Folder | None, boards: Sequence[Any] = ()):
    """`files` is None on the other processes, which write nothing; `boards` as in
    `MetricsWriter`.
    """
    self._files = files
    self._boards = boards
    self._writer: MetricsWriter | None = None

  def begin(self, step: int) -> None:
    """Opens the files after `step`, as `MetricsWriter` does."""
    if self._files:
      self._writer = MetricsWriter(self._files.local, step, self._boards)

  def write(self, step: int, scalars: Mapping[str, float], timing: Mapping[str, float]) -> None:
    """As `MetricsWriter.write`; the place of the run gets it soon."""
    if self._writer:
      self._writer.write(step, scalars, timing)
      self._files.send_soon()

  def send(self) -> None:
    """Returns when all that was written is in the place of the run."""
    if self._files:
      self._files.send()

  def check_owner(self) -> None:
    """Raises storage.TakenError if the place of the run belongs to another process by now."""
    if self._files:
      self._files.check_owner()

  def close(self) -> None:
    if self._writer:
      self._writer.close()


@contextlib.contextmanager
def wandb_run(project: str, workdir: pathlib.Path, config: cfg.TrainConfig) -> Iterator[Any]:
  """A run of Weights & Biases, for `MetricsWriter`; the same one after each restart in `workdir`.

  Raises:
    ValueError: wandb is not installed or refuses, for example because nobody has logged in.
  """
  try:
    import wandb  # Optional, and slow to import.
  except ImportError as e:
    raise ValueError(
      f"--wandb_project={project} needs wandb: pip install -e '.[wandb]', or drop the flag."
    ) from e
  name = workdir / 'wandb_id'
  if not name.exists():  # Else the run goes on under the name of its first start.
    storage.write_whole(name, secrets.token_hex(4))
  try:
    run = wandb.init(
      project=project,
      name=config.name,
      id=name.read_text(),
      resume='allow',
      dir=workdir,
      config=cfg.to_dict(config),
      settings=wandb.Settings(silent=True, console='off'),
    )
  except wandb.Error as e:
    raise ValueError(
      f'--wandb_project={project}: {e}. Run `wandb login`, or set WANDB_MODE=offline and send the '
      f'run later by `wandb sync {workdir}/wandb/*`.'
    ) from e
  failed = True
  try:
    yield run
    failed = False
  finally:
    run.finish(exit_code=int(failed))


def drop_after(path: pathlib.Path, step: int) -> None:
  """Removes the lines of a .jsonl file with a later `step`, and a last line cut short by a kill."""
  if not path.exists():
    return
  text = path.read_text()
  lines = text.splitlines(keepends=True)
  kept = ''.join(line for line in lines if _read_step(line) <= step)
  if kept != text:
    storage.write_whole(path, kept)


def _read_step(line: str) -> float:
  """The step of a line; infinity, later than any, if the line is not whole."""
  try:
    return json.loads(line)['step'] if line.endswith('\n') else math.inf
  except (ValueError, KeyError, TypeError):
    return math.inf


def _append(f: TextIO, step: int, scalars: Mapping[str, float]) -> None:
  line: dict[str, float] = {'step': step}
  for name, value in sorted(scalars.items()):
    line[name] = float(value)
  f.write(strict_json.dumps(line) + '\n')
  f.flush()  # A kill loses no line, and `tail -f` shows each at once.


class Speed:
  """How fast steps are completed, from the first one on: compilation does not count as training."""

  def __init__(
    self,
    batch_size: int,
    sample_flops: float = 0.0,
    peak_flops: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Begins the time that `goodput` is a share of.

    Args:
      sample_flops: FLOPs of training on one sample.
      peak_flops: FLOPs per second of all devices at their best; 0 where it is not known.
    """
    self._batch_size = batch_size
    self._sample_flops = sample_flops
    self._peak_flops = peak_flops
    self._clock = clock
    self._begin_s = clock()
    # (seconds, steps), for rates between two of them: at the first complete step, now, and about
    # every ten seconds.
    self._first: tuple[float, int] | None = None
    self._last: tuple[float, int] | None = None
    self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=16)

  def update(self, step: int) -> None:
    """Call when `step` is complete."""
    self._last = (self._clock(), step)
    self._first = self._first or self._last
    if not self._marks or self._last[0] - self._marks[-1][0] >= progress.EVERY_S:
      self._marks.append(self._last)

  @property
  def has_begun(self) -> bool:
    """Whether a step is complete."""
    return self._first is not None

  @property
  def samples_per_s(self) -> float:
    """Average over this process's steps, the first (compilation) excluded; 0 before the second."""
    if not self._first:
      return 0.0
    return progress.compute_rate(self._first, self._last) * self._batch_size

  @property
  def timing(self) -> dict[str, float]:
    """For timing.jsonl; `mfu` (model FLOPs, of the peak) only where the peak is known."""
    timing = {'samples_per_s': self.samples_per_s, 'goodput': self.goodput}
    if self._peak_flops:
      timing['mfu'] = self._compute_mfu(self.samples_per_s)
    return timing

  @property
  def goodput(self) -> float:
    """Share of the time since this object was made that the steps needed at their best rate,
    between 0 and 1.

    The rest went to compiling, restoring, saving and waiting for data.
    """
    if not self._first or self._last[1] == self._first[1]:
      return 0.0
    spans = [(self._first, self._last), *itertools.pairwise(self._marks)]
    # The best of all stretches, as the whole has pauses in it for saving and evaluation.
    best = max(progress.compute_rate(start, end) for start, end in spans)
    needed_s = (self._last[1] - self._first[1]) / best
    return min(1.0, needed_s / (self._last[0] - self._begin_s))

  def show(self, steps_per_s: float) -> str:
    """The rate as the progress line says it, with MFU where the peak is known."""
    samples_per_s = steps_per_s * self._batch_size
    text = f'{samples_per_s:.1f} samples/s'
    if not self._peak_flops:
      return text
    mfu = self._compute_mfu(samples_per_s)
    return f'{text}  MFU {100 * mfu:.1f}% of {self._peak_flops / 1e12:.0f} TFLOP/s'

  def _compute_mfu(self, samples_per_s: float) -> float:
    return samples_per_s * self._sample_flops / self._peak_flops
