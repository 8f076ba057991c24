"""Videos, as tests read them."""

from __future__ import annotations

import pathlib

import av
import numpy as np


def read(path: pathlib.Path) -> tuple[np.ndarray, float]:
  """Frames [T, rows, columns, 3], and how many of them are shown in a second."""
  with av.open(str(path)) as container:
    frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    return np.stack(frames), float(container.streams.video[0].average_rate)
