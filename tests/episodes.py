"""Datasets as TFDS reads them, without anything of ours."""

from __future__ import annotations

import pathlib
from typing import Any

import tensorflow_datasets as tfds


def read(path: str | pathlib.Path, split: str = 'train') -> list[dict[str, Any]]:
  """Episodes of a split: the metadata of each, and 'steps', a list."""
  source = tfds.builder_from_directory(path).as_data_source(split)
  return [{**each['episode_metadata'], 'steps': list(each['steps'])} for each in source]
