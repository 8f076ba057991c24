"""Frames of video files with their times, decoded one by one with PyAV, and JPEG encoding."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from wam_jax import pointers

JPEG_QUALITY = 95
# Containers whose header has the length of the video, as PyAV calls them.
_TELLING = ('mp4', 'matroska', 'avi', 'asf')
_SAME_S = 1e-4  # Times nearer than this are one: a tick is a microsecond or longer.
LAST_FRAME_S = 1.0  # A video may show its last frame this long.


def probe(path: pathlib.Path) -> tuple[float, float]:
  """(frames a second, seconds) of a video file, as its header has them, or else as its frames tell.

  Raises:
    ValueError: no such file, or not a video.
  """
  with _open(path) as (container, stream):
    if stream.duration:
      seconds = float(stream.duration * stream.time_base)
    else:
      seconds = (container.duration or 0) / 1_000_000  # A container counts microseconds.
    fps = float(stream.average_rate or 0)
    is_told = any(name in container.format.name for name in _TELLING)
  if is_told and seconds > 0 and fps > 0:
    return fps, seconds
  # A stream has no header that would know, and a browser writes it before it does.
  times = list_times(path)
  seconds = times[-1] * len(times) / max(1, len(times) - 1)
  if not seconds:
    raise ValueError(f'{path} has one frame and no length. Leave the file out.')
  return len(times) / seconds, seconds


def list_times(path: pathlib.Path) -> np.ndarray:
  """The seconds from the start of the video at which each frame is shown, in order; decodes none.

  Raises:
    ValueError: no such file, or not a video.
  """
  if not path.is_file():
    raise ValueError(f'There is no video file {path}. Restore it.')
  state = path.stat()
  return _list_times(path, state.st_size, state.st_mtime_ns)


# A packed file is asked for once an episode.
@functools.lru_cache(maxsize=16)
def _list_times(path: pathlib.Path, size: int, changed_ns: int) -> np.ndarray:
  av = import_av()
  with _open(path) as (container, stream):
    try:
      # The last packet only flushes the demuxer; one that is discarded shows nothing.
      ticks = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
    except av.FFmpegError as error:
      raise _unreadable(path, error) from error
    if not ticks:
      raise ValueError(f'{path} has no frame in it. Restore or replace the file.')
    if _has_no_times(container):
      return np.arange(len(ticks)) / float(stream.average_rate)
    if None in ticks:
      raise ValueError(f'{path} has frames without a time. Write it anew: ffmpeg -i IN -c copy OUT')
    return np.sort(ticks) * float(stream.time_base) - _start(stream)


def count_frames(path: pathlib.Path) -> int:
  """The frames of a video file, as its header has them, or else counted; decodes none.

  Raises:
    ValueError: no such file, or not a video.
  """
  with _open(path) as (container, stream):
    if stream.frames and 'mp4' in container.format.name:
      return stream.frames
  return len(list_times(path))


def read_frames(
  path: pathlib.Path, first: int, count: int, total: int
) -> Iterator[tuple[float, np.ndarray]]:
  """Yields frames `first ... first + count - 1` of a file: seconds since the first of them, and
  [rows, columns, 3] uint8, BGR.

  They are found by their number in the list of all frames, and each is held against that list.

  Args:
    total: frames of the file.
  Raises:
    ValueError: there are others, or another number of them; or the file is truncated or corrupt.
  """
  times_s = list_times(path)
  if len(times_s) != total:
    raise ValueError(
      f'{path} holds {len(times_s)} frames of the {total} that it announces; it is truncated. '
      'Restore the file.'
    )
  start_s = times_s[first]
  number = 0
  with _open(path) as (container, stream):
    for at, frame in _decode_from(container, stream, start_s):
      if at < start_s - _SAME_S:
        continue
      if abs(at - times_s[first + number]) > _SAME_S:
        raise ValueError(
          f'{path} decodes to a frame at {at:.4f} s where its list has one at '
          f'{times_s[first + number]:.4f} s; it is corrupt. Restore the file.'
        )
      yield at - start_s, _to_image(frame)
      number += 1
      if number == count:
        return
  raise ValueError(
    f'{path} ends after {number} of {count} frames from {start_s:.2f} s on; it is truncated. '
    'Restore the file.'
  )


def describe(path: pathlib.Path) -> tuple[int, int, str]:
  """(rows, columns, codec) of the first frame of a file, upright.

  Raises:
    ValueError: no such file, not a video, or one of depth.
  """
  with _open(path) as (container, stream):
    for _, frame in _decode(container, stream):
      return *_to_image(frame).shape[:2], stream.codec_context.name
  raise ValueError(f'{path} has no frame in it. Restore or replace the file.')


def read_every(
  path: pathlib.Path, start_s: float, stop_s: float, fps: float
) -> Iterator[np.ndarray]:
  """Yields what the video shows at `start_s`, `start_s` + 1 / `fps`, ... before `stop_s`: uint8
  BGR.

  A time between two frames shows the earlier one.
  Raises:
    ValueError: the video ends before; or the file is missing, truncated or corrupt.
  """
  # Less a rounding error, which would ask for one step too many.
  count = max(1, int(np.ceil((stop_s - start_s) * fps - 1e-6)))
  times = iter(start_s + np.arange(count) / fps)
  time = next(times)
  last_s, shown = -np.inf, None  # The newest frame, and when it appeared.
  with _open(path) as (container, stream):
    for at, frame in _decode_from(container, stream, start_s):
      while shown is not None and time < at - 1e-6:
        yield _to_image(shown)
        time = next(times, None)
        if time is None:
          return
      last_s, shown = at, frame

  # Nothing comes after the last frame; it is shown for a while.
  while time is not None and time < last_s + LAST_FRAME_S:
    yield _to_image(shown)
    time = next(times, None)
  if time is not None:
    raise ValueError(
      f'{path} has its last frame at {last_s:.2f} s, but should show {stop_s:.2f} s; it is '
      'truncated, or a caption ends too late.'
    )


def to_jpeg(image_IJ3: np.ndarray, size: tuple[int, int] | None = None) -> io.BytesIO:
  """A BGR image as JPEG, resized to `size` (rows, columns) if given."""
  if size and image_IJ3.shape[:2] != size:
    rows, columns = size
    is_shrinking = rows <= image_IJ3.shape[0] and columns <= image_IJ3.shape[1]
    # Areas are averaged: taking single pixels of a larger image makes fine texture flicker.
    interpolation = cv2.INTER_AREA if is_shrinking else cv2.INTER_LINEAR
    image_IJ3 = cv2.resize(image_IJ3, (columns, rows), interpolation=interpolation)
  _, encoded = cv2.imencode('.jpg', image_IJ3, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
  return io.BytesIO(encoded.tobytes())


def parse_size(text: str) -> tuple[int, int] | None:
  """(rows, columns) of 'ROWSxCOLUMNS', or None of ''.

  Raises:
    ValueError: it is neither.
  """
  match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
  if text and not match:
    raise ValueError(
      f'size={text!r} must be ROWSxCOLUMNS, such as 180x320, or empty for the size as it is.'
    )
  return (int(match[1]), int(match[2])) if match else None


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[tuple[Any, Any]]:
  """Opens a file; yields (container, its first video stream)."""
  if not path.is_file():
    raise ValueError(f'There is no video file {path}. Restore it.')
  pointers.check(path)
  av = import_av()
  try:
    container = av.open(str(path))
  except av.FFmpegError as error:
    raise _unreadable(path, error) from error
  with container:
    # Not the first one: that may be the picture on a cover.
    stream = container.streams.best('video')
    if stream is None:
      raise ValueError(f'{path} has no video in it. Restore or replace the file.')
    stream.thread_count = 1  # Several episodes are decoded at a time instead.
    yield container, stream


def _check_colour(path: str, frame: Any) -> None:
  """Raises ValueError if a frame is of depth: one channel of more than 8 bits."""
  channels = frame.format.components
  if len(channels) == 1 and channels[0].bits > 8:
    raise ValueError(
      f'{path} is a video of {frame.format.name}, one channel of {channels[0].bits} bits, as depth '
      'has, which is no picture.'
    )


def _decode(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
  """(seconds from the start of the video, frame) of every frame from here on."""
  av = import_av()
  start_s = _start(stream)
  has_no_times = _has_no_times(container)
  number = 0
  try:
    for frame in container.decode(stream):
      if frame.is_corrupt or (frame.pts is None and not has_no_times):
        raise ValueError(
          f'{container.name} has a corrupt frame, or one without a time. Restore the file.'
        )
      if not number:
        _check_colour(container.name, frame)
      if has_no_times:
        yield number / float(stream.average_rate), frame
      else:
        yield float(frame.pts * stream.time_base) - start_s, frame
      number += 1
  except av.FFmpegError as error:
    raise _unreadable(container.name, error) from error


def _decode_from(container: Any, stream: Any, time_s: float) -> Iterator[tuple[float, Any]]:
  """As `_decode`, from a key frame on that is not after a time."""
  if _has_no_times(container) or time_s <= 0:
    yield from _decode(container, stream)
    return
  ticks = int((_start(stream) + time_s) / stream.time_base)
  container.seek(ticks, stream=stream)
  frames = _decode(container, stream)
  first = next(frames, None)
  if first is not None and first[0] <= time_s + 1e-6:
    yield first
    yield from frames
    return
  # A container without an index does not find every place: then from the beginning.
  with _open(pathlib.Path(container.name)) as (container, stream):
    yield from _decode(container, stream)


def _has_no_times(container: Any) -> bool:
  """Whether frames have an order and a rate, and no times of their own; what a decoder calls their
  times is then that of their packets, which lie in another order.
  """
  return 'avi' in container.format.name


def _start(stream: Any) -> float:
  """Seconds that the container gives the first frame; not 0 in many recordings."""
  return float((stream.start_time or 0) * stream.time_base)


def _unreadable(path: Any, error: Exception) -> ValueError:
  return ValueError(
    f'{path} cannot be decoded ({error}); it is truncated, corrupt or no video. Restore the file.'
  )


def _to_image(frame: Any) -> np.ndarray:
  image = frame.to_ndarray(format='bgr24')
  if frame.rotation:  # A telephone held upright stores its pictures lying.
    image = np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
  return image


def import_av() -> Any:
  """PyAV, which is optional."""
  try:
    return importlib.import_module('av')
  except ImportError as error:
    raise ValueError("Reading video needs PyAV: pip install -e '.[lerobot]'.") from error
