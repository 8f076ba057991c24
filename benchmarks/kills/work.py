"""A training run, straight and killed at random moments: what is lost, and whether both end the
same.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from wam_jax import checkpoint
from wam_jax import integrity

PATIENCE_S = 300.0  # For any one moment to come, compilation included.
_START_S = 8.0  # Kills 'at the start' come within so many seconds of it.
_AFTER_S = 0.1  # Other kills come within so many seconds of their moment.
_POLL_S = 0.003


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a run is tried.

  Attributes:
    kills: the number of kills.
    steps: the length of the run.
    save_every: steps between its checkpoints.
    seed: the seed of the moments of the kills.
  """

  kills: int
  steps: int
  save_every: int
  seed: int = 0


class Aim(NamedTuple):
  """When a kill is meant to come.

  Attributes:
    moment: 'start', 'step' or 'save', what the run is to be at.
    step: the step that is to be reached first; any at the start.
  """

  moment: str
  step: int


@dataclasses.dataclass(frozen=True)
class Kill:
  """One kill.

  Attributes:
    moment: as in `Aim`.
    reached: the last step that the run wrote to metrics.jsonl.
    saved: the step of the newest complete checkpoint, 0 for none.
    torn: whether an unfinished checkpoint was left.
    first_step_s: seconds from the start of the process to its first new step; None if it was killed
      before.
  """

  moment: str
  reached: int
  saved: int
  torn: bool
  first_step_s: float | None

  @property
  def lost(self) -> int:
    """Steps to be done again."""
    return self.reached - self.saved


class _Run:
  """A training run that can be started again and again, and what its directory says of it."""

  def __init__(self, command: Sequence[str], workdir: pathlib.Path):
    self._command = [*command, f'--workdir={workdir}']
    self._workdir = workdir

  def start(self) -> subprocess.Popen:
    return subprocess.Popen(
      self._command,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      cwd=pathlib.Path(__file__).parents[2],
    )

  def finish(self) -> str:
    """Starts it and lets it end; its output."""
    process = self.start()
    output, _ = process.communicate()
    if process.returncode:
      raise RuntimeError(f'The run ended with code {process.returncode}:\n{output}')
    return output

  def read_reached(self) -> int:
    """Step of the last complete line of metrics.jsonl."""
    path = self._workdir / 'metrics.jsonl'
    if not path.exists():
      return 0
    with path.open('rb') as f:
      # More than the last two lines: the last one may be half written.
      f.seek(max(0, path.stat().st_size - 4096))
      steps = re.findall(rb'\{"step": (\d+),[^\n]*\n', f.read())
    return int(steps[-1]) if steps else 0

  def find_newest(self) -> int:
    """Step of the newest complete checkpoint, 0 for none."""
    return _find_newest(self._workdir)

  def find_unfinished(self) -> int:
    """Step of the checkpoint that is being written, or was when the run ended; -1 for none."""
    left = integrity.find_unfinished(self._workdir / 'checkpoints')
    return max((int(place.name.split('.')[0]) for place in left), default=-1)

  def kill(self, aim: Aim, rng: random.Random) -> Kill:
    """Starts it and kills it: at once, at a step not before that of `aim`, or in the save after."""
    begin = time.monotonic()
    saved_before = self.find_newest()
    reached_before = self.read_reached()
    first_step_s = None
    process = self.start()
    if aim.moment == 'start':
      time.sleep(rng.uniform(0, _START_S))
    else:
      # The lines after the newest checkpoint are dropped before the first new step.
      _wait(process, lambda: self.read_reached() <= saved_before)
      _wait(process, lambda: self.read_reached() > saved_before)
      first_step_s = time.monotonic() - begin
      _wait(process, lambda: self.read_reached() >= aim.step)
      if aim.moment == 'save':
        # Not one before, which may be under way still.
        _wait(process, lambda: self.find_unfinished() >= aim.step)
      time.sleep(rng.uniform(0, _AFTER_S))
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    if process.returncode != -signal.SIGKILL:
      raise RuntimeError(
        f'The run ended with code {process.returncode} before it was killed:\n{output}'
      )
    # One that was killed early may not have come to say where it continues.
    if 'continuing' in output or 'loss' in output:
      _check_continued(output, saved_before)

    reached = self.read_reached()
    if aim.moment == 'start' and reached == reached_before:
      # It did not get as far as to drop the lines of the run before.
      reached = saved_before
    return Kill(
      moment=aim.moment,
      reached=reached,
      saved=self.find_newest(),
      torn=self.find_unfinished() >= 0,
      first_step_s=first_step_s,
    )


def plan(kills: int, steps: int, rng: random.Random) -> list[Aim]:
  """The aim of each kill, in order of its step: a third in saves, a fifth at starts."""
  moments = ['save'] * (kills // 3) + ['start'] * (kills // 5)
  moments += ['step'] * (kills - len(moments))
  rng.shuffle(moments)
  # The last tenth is left alone, so that a save can still follow the last kill.
  reached = sorted(rng.randint(1, int(0.9 * steps)) for _ in moments)
  return [Aim(moment, step) for moment, step in zip(moments, reached)]


def run_straight(command: Sequence[str], workdir: pathlib.Path) -> float:
  """Runs it to its end; returns the seconds."""
  begin = time.monotonic()
  _Run(command, workdir).finish()
  return time.monotonic() - begin


def run_killed(
  command: Sequence[str],
  workdir: pathlib.Path,
  planned: Sequence[tuple[str, int]],
  rng: random.Random,
  say: Callable[[str], None] | None = None,
) -> list[Kill]:
  """Kills it at each planned moment, then lets it end.

  Args:
    planned: the `Aim`s.
    say: gets a line after each kill.
  Raises:
    RuntimeError: a start failed, or did not continue from the newest complete checkpoint.
  """
  run = _Run(command, workdir)
  kills: list[Kill] = []
  for aim in planned:
    kills.append(run.kill(Aim(*aim), rng))
    if say:
      say(f'kill {len(kills)} of {len(planned)}: {kills[-1]}')
  saved_before = run.find_newest()
  _check_continued(run.finish(), saved_before)
  return kills


def _wait(process: subprocess.Popen, has_come: Callable[[], bool]) -> None:
  deadline = time.monotonic() + PATIENCE_S
  while not has_come():
    if process.poll() is not None or time.monotonic() > deadline:
      process.kill()
      output, _ = process.communicate()
      raise RuntimeError(f'The moment of the kill never came:\n{output}')
    time.sleep(_POLL_S)


def _check_continued(output: str, newest: int) -> None:
  found = re.search(r'continuing after step (\d+)', output)
  continued = int(found[1]) if found else 0
  if continued != newest:
    raise RuntimeError(
      f'The newest complete checkpoint is that of step {newest}, but the run says:\n{output}'
    )


def _find_newest(workdir: pathlib.Path) -> int:
  return max(checkpoint.list_steps(workdir), default=0)


def list_differences(straight: pathlib.Path, killed: pathlib.Path) -> list[str]:
  """What is not the same at the end of two runs; empty if all is."""
  found = []
  if (straight / 'metrics.jsonl').read_bytes() != (killed / 'metrics.jsonl').read_bytes():
    found.append('metrics.jsonl')
  step = _find_newest(straight)
  if _find_newest(killed) != step:
    return [*found, f'newest checkpoint: {step} and {_find_newest(killed)}']

  one = straight / 'checkpoints' / str(step)
  other = killed / 'checkpoints' / str(step)
  for item in checkpoint.load_metadata(one)['items']:
    if item != 'iterator':
      found += _list_differing_arrays(one / item, other / item)
    # The state of the data is text, no tree of arrays.
    elif (one / item / 'metadata').read_text() != (other / item / 'metadata').read_text():
      found.append(item)
  return found


def _list_differing_arrays(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  mine = _load_leaves(one)
  theirs = _load_leaves(other)
  paths = mine.keys() | theirs.keys()
  return [
    f'{one.name}{jax.tree_util.keystr(path)}'
    for path in paths
    if not (path in mine and path in theirs and np.array_equal(mine[path], theirs[path]))
  ]


def _load_leaves(item: pathlib.Path) -> dict[tuple, np.ndarray]:
  tree = ocp.PyTreeCheckpointer().restore(item)
  return dict(jax.tree_util.tree_leaves_with_path(tree))


def measure(
  command: Sequence[str], root: pathlib.Path, settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
  """Both runs in `root`, and what came of them."""
  rng = random.Random(settings.seed)
  straight_s = run_straight(command, root / 'straight')
  begin = time.monotonic()
  planned = plan(settings.kills, settings.steps, rng)
  kills = run_killed(command, root / 'killed', planned, rng, say)
  killed_s = time.monotonic() - begin
  first_steps_s = [kill.first_step_s for kill in kills if kill.first_step_s] or [np.nan]
  return {
    'steps': settings.steps,
    'save_every': settings.save_every,
    'straight_s': straight_s,
    'killed_s': killed_s,
    'kills': [dataclasses.asdict(kill) | {'lost': kill.lost} for kill in kills],
    'lost': sum(kill.lost for kill in kills),
    'most_lost': max(kill.lost for kill in kills),
    'median_first_step_s': float(np.median(first_steps_s)),
    'differences': list_differences(root / 'straight', root / 'killed'),
  }


def show(found: dict[str, Any]) -> str:
  """A line for each kill of what `measure` found, and the sum."""
  lines = ['kill  moment  reached  saved  lost  torn save  start to first step']
  for number, kill in enumerate(found['kills'], 1):
    torn = 'left' if kill['torn'] else ''
    first = f'{kill["first_step_s"]:.1f} s' if kill['first_step_s'] else '-'
    lines.append(
      f'{number:>4}  {kill["moment"]:<6}{kill["reached"]:>9}{kill["saved"]:>7}{kill["lost"]:>6}  '
      f'{torn:<9}{first:>21}'
    )
  differences = found['differences']
  verdict = f'DIFFERENT: {", ".join(differences[:10])}' if differences else 'identical'
  lines += [
    '',
    f'{len(found["kills"])} kills over {found["steps"]} steps, '
    f'a checkpoint every {found["save_every"]}: '
    f'{found["lost"]} steps done again, at most {found["most_lost"]} for one kill; '
    f'median start to first step {found["median_first_step_s"]:.1f} s',
    f'straight run {found["straight_s"]:.0f} s, killed {found["killed_s"]:.0f} s',
    f'metrics and last checkpoint: {verdict}',
  ]
  return '\n'.join(lines)
