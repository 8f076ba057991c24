"""An MP4 of each episode: what was seen beside what had been imagined for the same moment.

A chunk's film is that of the times that it was for, as far as they were seen before the next chunk
took its place. It goes on as soon as both are there, so that little waits in memory.
"""

from __future__ import annotations

import collections
import os
import pathlib
import time
from collections.abc import Iterator

import numpy as np

from wam_jax import drawing
from wam_jax.serving import history as history_lib
from wam_jax.serving import watching

_ROWS = 320  # About so many of a panel; small frames are enlarged by whole factors.
_PAPER, _INK, _SOFT = (245, 246, 247), (43, 37, 34), (130, 122, 115)  # Red, green, blue.
_MARGIN, _CAPTION_ROWS, _LABEL_ROWS = 12, 40, 24
_CLOCK_COLUMNS = 90


class Film:
  """The film of one episode, which is written to a hidden file until it is whole."""

  def __init__(self, directory: pathlib.Path, began: watching.Began):
    self._record = began.record
    self._title = f'{began.record.name}: {began.prompt}'
    when = time.strftime('%Y%m%dT%H%M%S', time.gmtime(began.at_s))
    self._path = directory / f'{when}-{began.episode:06d}.mp4'
    self._part = directory / f'.{self._path.stem}.part.mp4'
    self._windows: collections.deque[history_lib.Window] = collections.deque()
    self._imagined: dict[float, np.ndarray | None] = {}
    self._writer: drawing.Mp4 | None = None
    self._seconds = 0.0
    self.is_over = False

  def see(self, window: history_lib.Window) -> None:
    """A chunk was asked for by these frames."""
    if self._writer is None:
      self._show(window.frames[-1], None)
    self._windows.append(window)

  def imagine(self, step: float, frames_RIJ3: np.ndarray | None) -> None:
    """What was imagined with the chunk of `step`."""
    self._imagined[step] = frames_RIJ3

  def go_on(self) -> bool:
    """Writes what is complete; whether the film is."""
    while len(self._windows) > 1 and self._windows[0].step in self._imagined:
      step = self._windows.popleft().step
      imagined_RIJ3 = self._imagined.pop(step)
      for seen, place in self._match(step, self._windows[0]):
        self._show(seen, None if imagined_RIJ3 is None else imagined_RIJ3[place])
    return self.is_over and len(self._windows) <= 1

  def close(self) -> None:
    """The film is whole."""
    if self._writer is not None:
      self._writer.close()
      os.replace(self._part, self._path)

  def discard(self) -> None:
    if self._writer is None:
      return
    try:
      self._writer.close()
    finally:
      self._part.unlink(missing_ok=True)

  def _match(self, step: float, seen: history_lib.Window) -> Iterator[tuple[np.ndarray, int]]:
    """(frame, number of the imagined frame of that moment), of those after `step`."""
    stride = self._record.stride
    for at, frame in seen.place_frames(stride):
      place = round((at - step) / stride) - 1
      if 0 <= place < self._record.camera_frames_per_chunk:
        yield frame, place

  def _show(self, seen: np.ndarray, imagined: np.ndarray | None) -> None:
    if self._writer is None:
      self._writer = drawing.Mp4(self._part, self._record.video_fps)
    self._writer.append_data(paint(self._title, self._seconds, seen, imagined))
    self._seconds += 1 / self._record.video_fps


class Films(watching.Watcher):
  """Writes the films of all episodes to a directory."""

  name = 'films'

  def __init__(self, directory: str | os.PathLike[str]):
    """
    Raises:
      OSError: nothing can be written there.
    """
    self._directory = pathlib.Path(directory).expanduser()
    self._directory.mkdir(parents=True, exist_ok=True)
    self._films: dict[int, Film] = {}

  def take(self, event: watching.Event) -> None:
    if isinstance(event, watching.Began):
      self._films[event.episode] = Film(self._directory, event)
    film = self._films.get(event.episode)
    if film is None:
      return
    if isinstance(event, watching.Answered):
      film.see(event.window)
    elif isinstance(event, watching.Imagined):
      film.imagine(event.step, event.frames_RIJ3)
    elif isinstance(event, watching.Ended):
      film.is_over = True
    if film.go_on():
      film.close()
      del self._films[event.episode]

  def lose(self, episode: int) -> None:
    film = self._films.pop(episode, None)
    if film is not None:
      film.discard()

  def close(self) -> None:
    for episode in list(self._films):
      self.lose(episode)


def paint(title: str, seconds: float, seen: np.ndarray, imagined: np.ndarray | None) -> np.ndarray:
  """A picture [rows, columns, 3] with even sides: both frames, a caption, and labels.

  Args:
    seen, imagined: uint8 [I, J, 3]; an empty panel where nothing was imagined.
  """
  panel = drawing.enlarge(seen, _ROWS)
  other = np.full_like(panel, 225) if imagined is None else drawing.enlarge(imagined, _ROWS)
  rows, columns, _ = panel.shape
  bottom = _CAPTION_ROWS + rows
  size = (bottom + _LABEL_ROWS, 2 * columns + 3 * _MARGIN, 3)
  picture = np.full(size, _PAPER, np.uint8)
  for number, (words, each) in enumerate((('seen', panel), ('imagined', other))):
    left = _MARGIN + number * (columns + _MARGIN)
    picture[_CAPTION_ROWS:bottom, left : left + columns] = each
    drawing.write(picture[bottom:], words, (left, 4), 13, _SOFT)
  caption = picture[:_CAPTION_ROWS]
  drawing.write(caption[:, :-_CLOCK_COLUMNS], title, (_MARGIN, 11), 16, _INK)
  right = picture.shape[1] - _MARGIN
  drawing.write(caption, f'{seconds:.1f} s', (right, 11), 16, _SOFT, anchor='ra')
  return drawing.make_even(picture, _PAPER)
