"""Recordings of real robots, which are no part of the project.

A test takes an argument `sample_NAME`, the directory of one, and is left out where `--samples` has
none. What it is about is tested on made-up episodes of the same form, too.
"""

from __future__ import annotations

import pathlib

# Beside the checkout.
HERE = pathlib.Path(__file__).parents[2] / 'shared/data'
SAMPLES = {
  # BridgeData V2, 25 episodes of each split, TFRecord.
  'bridge': 'bridge_rlds_sample/bridge_dataset/1.0.0',
  # DROID, the videos of three cameras.
  'droid': 'droid_video_sample',
  # A Unitree G1, four episodes of LeRobot v2.1.
  'g1': 'lerobot_v21_g1_sample',
}


def find(directory: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The directory of a sample, or none."""
  place = directory / SAMPLES[name]
  return [place] if place.exists() else []
