"""Commands of the project within a notebook: their words appear below the cell as they come.

Owns processes, the curve of a loss and a picture shown; all else of a demo is in the project.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import queue
import shlex
import subprocess
import sys
import threading
import time

import imageio.v2 as imageio
import numpy as np
from IPython.display import display
from IPython.display import Image
from matplotlib.figure import Figure

_EVERY_S = 2.0  # Between two pictures of a curve.


@dataclasses.dataclass(frozen=True)
class Running:
  """A command under way.

  Attributes:
    command: its words.
    process: what runs it.
    lines: what it has said and nobody has followed yet; None at its end.
  """

  command: str
  process: subprocess.Popen[str]
  lines: queue.SimpleQueue[str | None]


def run(command: str) -> None:
  """Runs 'python ...' to its end.

  Raises:
    RuntimeError: it failed; what it said stands above.
  """
  follow(start(command))


def start(command: str) -> Running:
  """'python ...', by this interpreter, under way. `follow` shows what it says."""
  program, *arguments = shlex.split(command)
  if program != 'python':
    raise ValueError(f'A command begins with python, not with {program!r}.')
  print(f'$ {command}', flush=True)
  process = subprocess.Popen(
    [sys.executable, '-u', *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  running = Running(command, process, queue.SimpleQueue())
  # All the time: a pipe that is full would stop the process.
  threading.Thread(target=_read, args=(running,), daemon=True).start()
  return running


def follow(running: Running, until: str = '') -> str:
  """Shows what a command says, up to the line that begins with `until`, whose rest is returned.

  Raises:
    RuntimeError: it failed, or ended before it said that; what it said stands above.
  """
  while (line := running.lines.get()) is not None:
    print(line, end='', flush=True)
    if until and line.startswith(until):
      return line.removeprefix(until).strip()
  status = running.process.wait()
  if status or until:
    raise RuntimeError(f'{running.command}: ended with status {status}; see what it said.')
  return ''


def stop(running: Running) -> None:
  """Tells a command to end, by SIGTERM, and waits until it has; a training run saves first."""
  running.process.terminate()
  running.process.wait()


def train(command: str, workdir: pathlib.Path) -> None:
  """Runs a training command, and draws its loss as it grows; interrupting the cell saves and stops.

  Raises:
    RuntimeError: it failed; what it said stands above.
  """
  running = start(command)
  curve = display(_make_image(draw_loss(workdir)), display_id=True)
  try:
    while running.process.poll() is None:
      _show_what_is_there(running)
      if curve is not None:  # Outside of a notebook there is nothing that changes.
        curve.update(_make_image(draw_loss(workdir)))
      time.sleep(_EVERY_S)
  except KeyboardInterrupt:
    stop(running)
    print('stopped; run the cell again to continue')
    return
  follow(running)


def show(picture_IJ3: np.ndarray, path: pathlib.Path) -> None:
  """Writes an RGB picture, uint8, as PNG, and shows it at its own size."""
  imageio.imwrite(path, picture_IJ3)
  display(Image(path))


def draw_loss(workdir: pathlib.Path) -> Figure:
  """The loss of every step in the metrics of a run, so far."""
  metrics = pathlib.Path(workdir) / 'metrics.jsonl'
  text = metrics.read_text() if metrics.exists() else ''
  # The last line may be one that is being written.
  lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]
  losses = [(line['step'], line['loss']) for line in lines if 'loss' in line]
  figure = Figure(figsize=(9, 3), layout='constrained')
  axis = figure.subplots()
  axis.plot(*zip(*losses) if losses else ((), ()), marker='.')
  axis.set(xlabel='step', ylabel='loss', yscale='log')
  return figure


def _make_image(figure: Figure) -> Image:
  """What a notebook shows; of a figure that pyplot does not know it would show the name alone."""
  png = io.BytesIO()
  figure.savefig(png, format='png')
  return Image(png.getvalue())


def _read(running: Running) -> None:
  for line in running.process.stdout:
    running.lines.put(line)
  running.lines.put(None)


def _show_what_is_there(running: Running) -> None:
  while not running.lines.empty():
    if (line := running.lines.get()) is None:
      running.lines.put(None)  # For `follow`.
      return
    print(line, end='', flush=True)
