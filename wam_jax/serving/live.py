"""All sessions in rerun, live or in a file: what was seen and what had been imagined for the same
moment, actions, latency.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from wam_jax.serving import watching

_SUFFIX = '.rrd'
_CLOCK, _EPISODE = 'clock', 'episode'


class Live(watching.Watcher):
  """Sends everything to a viewer. Times of an episode are seconds of its control steps, in which an
  imagined frame lies where it was for.
  """

  name = 'rerun'

  def __init__(self, target: str):
    """
    Args:
      target: a file NAME.rrd, or the address of a viewer that runs, as
        rerun+http://127.0.0.1:9876/proxy.
    Raises:
      ValueError: rerun is not installed, or the target is neither.
    """
    try:
      import rerun
    except ModuleNotFoundError as e:
      raise ValueError("--rerun needs the package rerun-sdk: pip install -e '.[rerun]'.") from e
    self._rerun: Any = rerun
    self._stream = rerun.RecordingStream('wam_jax')
    if target.endswith(_SUFFIX):
      path = os.path.expanduser(target)
      os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
      self._stream.save(path)
    elif '://' in target:
      self._stream.connect_grpc(target)
    else:
      raise ValueError(
        f'--rerun={target} must be a file NAME.rrd, or the address of a viewer that runs, as '
        'rerun+http://127.0.0.1:9876/proxy.'
      )
    self._open: dict[int, watching.Began] = {}
    # The control step of the first chunk of each: clients count from anywhere, as since 1970.
    self._first: dict[int, float] = {}

  def take(self, event: watching.Event) -> None:
    if isinstance(event, watching.Began):
      self._open[event.episode] = event
      self._begin(event)
      return
    began = self._open.get(event.episode)
    if began is None:
      return
    if isinstance(event, watching.Answered):
      self._first.setdefault(event.episode, event.window.step)
      self._answer(began, event)
    elif isinstance(event, watching.Imagined) and event.frames_RIJ3 is not None:
      self._first.setdefault(event.episode, event.step)
      stride = began.record.stride
      for number, frame in enumerate(event.frames_RIJ3, 1):
        self._place(began, event.step + number * stride)
        self._log(began, 'imagined', self._image(frame))

  def lose(self, episode: int) -> None:
    self._open.pop(episode, None)
    self._first.pop(episode, None)

  def close(self) -> None:
    self._stream.flush()
    self._stream.disconnect()

  def _begin(self, began: watching.Began) -> None:
    self._place(began, 0.0)
    text = f'{began.record.name}: {began.prompt} ({began.why})'
    self._log(began, 'prompt', self._rerun.TextDocument(text))

  def _answer(self, began: watching.Began, event: watching.Answered) -> None:
    window = event.window
    for at, frame in window.place_frames(began.record.stride):
      # Before the first chunk, every frame is the current one.
      if at >= self._first[began.episode]:
        self._place(began, at)
        self._log(began, 'seen', self._image(frame))
    for number, action_U in enumerate(event.action_SU):
      self._place(began, window.step + number)
      self._log(began, 'action', self._rerun.Scalars(np.asarray(action_U, np.float64)))
    self._place(began, window.step)
    for name, seconds in (('age', event.age_s), ('queue', event.queue_s)):
      self._log(began, f'latency/{name}_ms', self._rerun.Scalars([1e3 * seconds]))

  def _place(self, began: watching.Began, step: float) -> None:
    seconds = (step - self._first.get(began.episode, 0.0)) / began.record.control_hz
    self._stream.set_time(_EPISODE, duration=seconds)
    self._stream.set_time(_CLOCK, timestamp=began.at_s + seconds)

  def _log(self, began: watching.Began, what: str, content: Any) -> None:
    place = ['session', began.session, f'episode {began.episode}', *what.split('/')]
    self._stream.log(place, content)

  def _image(self, frame_IJ3: np.ndarray) -> Any:
    image = self._rerun.Image(np.ascontiguousarray(frame_IJ3))
    return (
      image
      if len(frame_IJ3) <= watching.SMALL_ROWS
      else image.compress(jpeg_quality=watching.JPEG_QUALITY)
    )
