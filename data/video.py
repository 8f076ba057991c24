"""Frames of video files with their times, decoded one by one with PyAV, and JPEG encoding."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

JPEG_QUALITY = 95
LAST_FRAME_S = 1.0  # A video may show its last frame this long.


def probe(path: pathlib.Path) -> tuple[float, float]:
  """(frames a second, seconds) as the header of a video file has them.

  Raises:
    ValueError: no such file, not a video, or no rate or length in its header.
  """
  with _open(path) as (container, stream):
    if stream.duration:
      seconds = stream.duration * stream.time_base
    else:
      seconds = (container.duration or 0) / 1_000_000  # A container counts microseconds.
    if not seconds or not stream.average_rate:
      raise ValueError(f'{path} has no length or no frame rate in its header. Re-encode the file.')
    return float(stream.average_rate), float(seconds)


def read_at(
  path: pathlib.Path, times_s: Sequence[float], tolerance_s: float, whole: bool
) -> Iterator[np.ndarray]:
  """Yields the frame at each of `times_s`, seconds from the start of the file: [rows, columns, 3]
  uint8, BGR.

  Frames and times must belong to each other one by one: no frame lies between two times, none is
  missing.

  Args:
    tolerance_s: a frame this near to a time is the frame of that time.
    whole: whether nothing else is in the file; otherwise other frames come before and after.
  Raises:
    ValueError: that is not so; or the file is missing, truncated or corrupt.
  """
  with _open(path) as (container, stream):
    if whole:
      frames = _decode(container, stream)
    else:
      # The key frame from which one has to decode may lie far before the first time.
      _seek(container, stream, times_s[0] + tolerance_s)
      first_s = times_s[0] - tolerance_s
      frames = itertools.dropwhile(lambda frame: frame[0] < first_s, _decode(container, stream))

    number = 0
    for at, frame in frames:
      if number == len(times_s):
        if whole:
          count = number + 1 + sum(1 for _ in frames)
          raise ValueError(f'{path} holds {count} frames, but there are {number} rows for them.')
        if at < times_s[-1] + tolerance_s:
          raise ValueError(
            f'{path} has two frames within {tolerance_s:.4f} s of {times_s[-1]:.4f} s.'
          )
        return
      if abs(at - times_s[number]) > tolerance_s:
        raise ValueError(
          f'{path} has frame {number} at {at:.4f} s, but its row says {times_s[number]:.4f} s; '
          'frames and rows do not belong to each other.'
        )
      yield _to_image(frame)
      number += 1
  if number < len(times_s):
    raise ValueError(
      f'{path} ends after {number} frames of {len(times_s)} rows; it is truncated or of another '
      'episode.'
    )


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
    _seek(container, stream, start_s)
    for at, frame in _decode(container, stream):
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
  av = import_av()
  try:
    container = av.open(str(path))
  except av.FFmpegError as error:
    raise _unreadable(path, error) from error
  with container:
    if not container.streams.video:
      raise ValueError(f'{path} has no video in it. Restore or replace the file.')
    stream = container.streams.video[0]
    stream.thread_count = 1  # Several episodes are decoded at a time instead.
    yield container, stream


def _decode(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
  """(seconds from the start of the video, frame) of every frame from here on."""
  av = import_av()
  start_s = _start(stream)
  try:
    for frame in container.decode(stream):
      if frame.pts is None or frame.is_corrupt:
        raise ValueError(
          f'{container.name} has a corrupt frame, or one without a time. Restore the file.'
        )
      yield float(frame.pts * stream.time_base) - start_s, frame
  except av.FFmpegError as error:
    raise _unreadable(container.name, error) from error


def _seek(container: Any, stream: Any, time_s: float) -> None:
  """Goes to the last key frame at or before a time."""
  ticks = int((_start(stream) + time_s) / stream.time_base)
  container.seek(ticks, stream=stream)


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
