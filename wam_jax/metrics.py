"""Where numbers of a run go: metrics.jsonl, timing.jsonl, TensorBoard, Weights & Biases and the
progress line.

metrics.jsonl holds only what the config determines, so that a run that was killed and resumed
writes the same file as one that was not; everything that depends on the clock goes elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import math
import pathlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import tensorboardX

from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib


class MetricsWriter:
  """Appends one line per call to WORKDIR/metrics.jsonl and timing.jsonl, and the same scalars to
  TensorBoard.
  """

  def __init__(self, workdir: pathlib.Path, step: int, boards: Sequence[Any] = ()):
    """Continues after `step` (0 for a new run): what a killed run wrote later is dropped, it will
    be written again.

    Args:
      boards: of `wandb_run`, that are shown the same scalars.
    """
    self._boards = boards
    drop_after(workdir / 'metrics.jsonl', step)
    drop_after(workdir / 'timing.jsonl', step)
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
  if not name.exists():
    workdir_lib.save_text(name, secrets.token_hex(4))
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
      f'--wandb_project={project}: {e}. Run `wandb login`, or set WANDB_MODE=offline and send the run '
      f'later by `wandb sync {workdir}/wandb/*`.'
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
  kept = ''.join(line for line in text.splitlines(keepends=True) if _step_of(line) <= step)
  if kept != text:
    workdir_lib.save_text(path, kept)


def _step_of(line: str) -> float:
  try:
    return json.loads(line)['step'] if line.endswith('\n') else math.inf
  except (ValueError, KeyError, TypeError):
    return math.inf


def _append(f: TextIO, step: int, scalars: Mapping[str, float]) -> None:
  finite = {
    name: float(value) if math.isfinite(value) else None for name, value in sorted(scalars.items())
  }
  f.write(json.dumps({'step': step} | finite) + '\n')
  f.flush()


class Progress:
  """Progress with rate and time left: rewritten in place on a terminal, else a line every ten
  seconds.
  """

  def __init__(
    self,
    steps: int,
    batch_size: int,
    stream: TextIO | None = None,
    clock=time.monotonic,
    sample_flops: float = 0.0,
    peak_flops: float = 0.0,
  ):
    """`sample_flops`: of a training sample; `peak_flops`: of all devices per second, 0 where it is
    not known.
    """
    self._steps, self._batch_size, self._clock = steps, batch_size, clock
    self._sample_flops, self._peak_flops = sample_flops, peak_flops
    self._stream = stream or sys.stdout
    self._in_place = self._stream.isatty()
    self._period_s = 0.5 if self._in_place else 10.0
    self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=16)
    self._begin = clock()
    self._first: tuple[float, int] | None = None
    self._last: tuple[float, int] | None = None
    self._width = 0

  def update(self, step: int, loss: float) -> None:
    """Call when `step` is complete. The first call starts the clock: compilation does not count as
    training.
    """
    now = (self._clock(), step)
    self._first, self._last = self._first or now, now
    if not self._marks:
      self._marks.append(now)
    elif now[0] - self._marks[-1][0] >= self._period_s or (self._in_place and step == self._steps):
      rate = _rate(self._marks[0], now)
      self._marks.append(now)
      left = datetime.timedelta(seconds=round((self._steps - step) / rate)) if rate else '?'
      self._show(
        f'step {step}/{self._steps} ({100 * step // self._steps}%)  loss {loss:.4f}  '
        f'{rate * self._batch_size:.1f} samples/s{self._show_mfu(rate)}  ETA {left}'
      )

  @property
  def samples_per_s(self) -> float:
    """Average over this process's steps, the first (compilation) excluded; 0 before the second."""
    return _rate(self._first, self._last) * self._batch_size if self._first else 0.0

  @property
  def timing(self) -> dict[str, float]:
    """For timing.jsonl; `mfu` (model FLOPs, of the peak) only where the peak is known."""
    mfu = (
      {'mfu': self.samples_per_s * self._sample_flops / self._peak_flops}
      if self._peak_flops
      else {}
    )
    return {'samples_per_s': self.samples_per_s, 'goodput': self.goodput} | mfu

  @property
  def goodput(self) -> float:
    """Share of the time since this object was made that the steps needed at their best rate,
    between 0 and 1.

    The rest went to compiling, restoring, saving and waiting for data.
    """
    if not self._first or self._last[1] == self._first[1]:
      return 0.0
    best = max(
      [_rate(a, b) for a, b in zip(self._marks, list(self._marks)[1:])]
      + [_rate(self._first, self._last)]
    )
    return min(1.0, (self._last[1] - self._first[1]) / best / (self._last[0] - self._begin))

  def say(self, message: str) -> None:
    """Prints `message` on lines of its own."""
    self._clear()
    print(message, file=self._stream, flush=True)

  def _show_mfu(self, rate: float) -> str:
    if not self._peak_flops:
      return ''
    mfu = rate * self._batch_size * self._sample_flops / self._peak_flops
    return f'  MFU {100 * mfu:.1f}% of {self._peak_flops / 1e12:.0f} TFLOP/s'

  def _show(self, line: str) -> None:
    if self._in_place:
      self._clear()
      self._stream.write(line)
      self._stream.flush()
      self._width = len(line)
    else:
      self.say(line)

  def _clear(self) -> None:
    if self._width:
      self._stream.write('\r' + ' ' * self._width + '\r')
      self._width = 0


def _rate(start: tuple[float, int], end: tuple[float, int]) -> float:
  """Steps per second."""
  return (end[1] - start[1]) / (end[0] - start[0]) if end[0] > start[0] else 0.0
