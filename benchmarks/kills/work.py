"""A training run, straight and killed at random moments: what is lost, and whether both end the
same.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from wam_jax import checkpoint

PATIENCE_S = 300.0


@dataclasses.dataclass(frozen=True)
class Kill:
  """One kill.

  Attributes:
    moment: 'start', 'step' or 'save', what the run was meant to be at.
    reached: last step it wrote to metrics.jsonl. saved: step of the newest complete checkpoint, 0
      for none.
    torn: whether an unfinished checkpoint was left.
    first_step_s: from the start of the process to its first new step; None if it was killed before.
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


def plan(kills: int, steps: int, rng: random.Random) -> list[tuple[str, int]]:
  """(moment, step that is to be reached) of each kill, in order."""
  moments = ['save'] * (kills // 3) + ['start'] * (kills // 5)
  moments += ['step'] * (kills - len(moments))
  rng.shuffle(moments)
  return list(zip(moments, sorted(rng.randint(1, int(0.9 * steps)) for _ in moments)))


def run_straight(command: Sequence[str], workdir: pathlib.Path) -> float:
  """Runs it to its end; returns the seconds."""
  begin = time.monotonic()
  _finish(_start(command, workdir))
  return time.monotonic() - begin


def run_killed(
  command: Sequence[str],
  workdir: pathlib.Path,
  planned: Sequence[tuple[str, int]],
  rng: random.Random,
  say: Callable[[str], None] = lambda _: None,
) -> list[Kill]:
  """Kills it at each planned moment, then lets it end.

  Raises:
    RuntimeError: a start failed, or did not continue from the newest complete checkpoint.
  """
  kills: list[Kill] = []
  for moment, target in planned:
    kills.append(_run_until(command, workdir, moment, target, rng))
    say(f'kill {len(kills)} of {len(planned)}: {kills[-1]}')
  before = _newest(workdir)
  output = _finish(_start(command, workdir))
  _check_continued(output, before)
  return kills


def _run_until(
  command: Sequence[str], workdir: pathlib.Path, moment: str, target: int, rng: random.Random
) -> Kill:
  """Starts the program and kills it: at once, at a step not before `target`, or in the save after
  it.
  """
  newest, before, begin = _newest(workdir), _reached(workdir), time.monotonic()
  process = _start(command, workdir)
  first_step_s = None
  if moment == 'start':
    time.sleep(rng.uniform(0, 8))
  else:
    _wait(
      process, lambda: _reached(workdir) <= newest
    )  # Lines after the checkpoint are dropped first.
    _wait(process, lambda: _reached(workdir) > newest)
    first_step_s = time.monotonic() - begin
    _wait(process, lambda: _reached(workdir) >= target)
    if moment == 'save':
      _wait(process, lambda: _unfinished(workdir))
    time.sleep(rng.uniform(0, 0.1))
  process.send_signal(signal.SIGKILL)
  output, _ = process.communicate()
  if process.returncode != -signal.SIGKILL:
    raise RuntimeError(
      f'The run ended with code {process.returncode} before it was killed:\n{output}'
    )
  if 'continuing' in output or 'loss' in output:
    _check_continued(output, newest)
  reached = _reached(workdir)
  if (
    moment == 'start' and reached == before
  ):  # It did not get as far as to drop the lines of the one before.
    reached = newest
  return Kill(moment, reached, _newest(workdir), bool(_unfinished(workdir)), first_step_s)


def _start(command: Sequence[str], workdir: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
    [*command, f'--workdir={workdir}'],
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    cwd=pathlib.Path(__file__).parents[2],
  )


def _finish(process: subprocess.Popen) -> str:
  output, _ = process.communicate()
  if process.returncode:
    raise RuntimeError(f'The run ended with code {process.returncode}:\n{output}')
  return output


def _wait(process: subprocess.Popen, arrived: Callable[[], Any]) -> None:
  deadline = time.monotonic() + PATIENCE_S
  while not arrived():
    if process.poll() is not None or time.monotonic() > deadline:
      process.kill()
      raise RuntimeError(f'The moment of the kill never came:\n{process.communicate()[0]}')
    time.sleep(0.003)


def _check_continued(output: str, newest: int) -> None:
  found = re.search(r'continuing after step (\d+)', output)
  if (int(found[1]) if found else 0) != newest:
    raise RuntimeError(
      f'The newest complete checkpoint is that of step {newest}, but the run says:\n{output}'
    )


def _reached(workdir: pathlib.Path) -> int:
  """Step of the last complete line of metrics.jsonl."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0
  with path.open('rb') as f:
    f.seek(max(0, path.stat().st_size - 4096))
    steps = re.findall(rb'\{"step": (\d+),[^\n]*\n', f.read())
  return int(steps[-1]) if steps else 0


def _newest(workdir: pathlib.Path) -> int:
  return max(checkpoint.list_steps(workdir), default=0)


def _unfinished(workdir: pathlib.Path) -> list[pathlib.Path]:
  return list((workdir / 'checkpoints').glob('*tmp*'))


def list_differences(straight: pathlib.Path, killed: pathlib.Path) -> list[str]:
  """What is not the same at the end of two runs; empty if all is."""
  found = []
  if (straight / 'metrics.jsonl').read_bytes() != (killed / 'metrics.jsonl').read_bytes():
    found.append('metrics.jsonl')
  step = _newest(straight)
  if _newest(killed) != step:
    return [*found, f'newest checkpoint: {step} and {_newest(killed)}']
  places = [workdir / 'checkpoints' / str(step) for workdir in (straight, killed)]
  metadata = [json.loads((place / 'metadata' / 'metadata').read_text()) for place in places]
  for item in metadata[0]['items']:
    if item == 'iterator':
      same = len({(place / item / 'metadata').read_text() for place in places}) == 1
      found.extend([] if same else [item])
      continue
    one, other = (
      dict(jax.tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(place / item)))
      for place in places
    )
    found.extend(
      f'{item}{jax.tree_util.keystr(path)}'
      for path in one.keys() | other.keys()
      if path not in one or path not in other or not np.array_equal(one[path], other[path])
    )
  return found


def show(found: dict[str, Any]) -> str:
  """A line for each kill, and the sum."""
  lines = ['kill  moment  reached  saved  lost  torn save  start to first step']
  for number, kill in enumerate(found['kills'], 1):
    first = f'{kill["first_step_s"]:.1f} s' if kill['first_step_s'] else '-'
    lines.append(
      f'{number:>4}  {kill["moment"]:<6}{kill["reached"]:>9}{kill["saved"]:>7}{kill["lost"]:>6}  '
      f'{"left" if kill["torn"] else "":<9}{first:>21}'
    )
  return '\n'.join(
    [
      *lines,
      '',
      f'{len(found["kills"])} kills over {found["steps"]} steps, a checkpoint every {found["save_every"]}: '
      f'{found["lost"]} steps done again, at most {found["most_lost"]} for one kill; median start to first step '
      f'{found["median_first_step_s"]:.1f} s',
      f'straight run {found["straight_s"]:.0f} s, killed {found["killed_s"]:.0f} s',
      'metrics and last checkpoint: '
      + (
        'identical'
        if not found['differences']
        else 'DIFFERENT: ' + ', '.join(found['differences'][:10])
      ),
    ]
  )


def measure(
  command: Sequence[str],
  root: pathlib.Path,
  kills: int,
  steps: int,
  save_every: int,
  seed: int,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Both runs in `root`, and what came of them."""
  rng = random.Random(seed)
  straight_s = run_straight(command, root / 'straight')
  begin = time.monotonic()
  made = run_killed(command, root / 'killed', plan(kills, steps, rng), rng, say)
  killed_s = time.monotonic() - begin
  lost = [kill.lost for kill in made]
  return {
    'steps': steps,
    'save_every': save_every,
    'straight_s': straight_s,
    'killed_s': killed_s,
    'kills': [dataclasses.asdict(kill) | {'lost': kill.lost} for kill in made],
    'lost': sum(lost),
    'most_lost': max(lost),
    'median_first_step_s': float(
      np.median([kill.first_step_s for kill in made if kill.first_step_s] or [np.nan])
    ),
    'differences': list_differences(root / 'straight', root / 'killed'),
  }
