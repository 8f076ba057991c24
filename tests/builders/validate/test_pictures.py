"""Pictures of a dataset show what they should."""

from __future__ import annotations

import cv2
import numpy as np

from data.validate import pictures
from data.validate import video
from tests.builders.validate import spoilt


def test_contact_sheet_shows_the_composites():
  red, blue = (np.full((32, 48, 3), color, np.uint8) for color in ((200, 10, 30), (20, 40, 210)))
  clip = video.Clip(
    episode=3,
    where='record 3',
    text='go there',
    state_TX=np.zeros((9, 3)),
    action_TU=np.zeros((9, 3)),
    thumbs={},
    shape={},
    pictures={0: red, 8: blue},
  )
  sheet = cv2.imdecode(
    np.frombuffer(pictures.draw_sheet(spoilt.ROBOT, [clip], 'title'), np.uint8),
    cv2.IMREAD_COLOR_RGB,
  )
  red, blue = [(sheet == color).all(-1).nonzero()[1] for color in ((200, 10, 30), (20, 40, 210))]
  # Time runs to the right.
  assert min(red.size, blue.size) > 20000
  assert red.max() < blue.min()
