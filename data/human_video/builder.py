"""Makes a video-only dataset of a folder of captioned videos: episodes of one view, no states, no
actions.

Owns captions and how videos are cut into episodes; `data/video.py` decodes and `data/rlds.py`
writes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data import rlds
from data import video
from data.lerobot import files as lerobot_files
from wam_jax import progress
from wam_jax import storage
from wam_jax.data import embodiments

NAME = 'human_video'
CAPTIONS = 'captions.jsonl'
# Containers that are usual, in either case: telephones and cameras write .MOV and .MP4.
SUFFIXES = (
  *('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.mpg', '.mpeg'),
  *('.ts', '.mts', '.m2ts', '.wmv', '.flv', '.3gp', '.ogv'),
)
SHARD_FRAMES = 8192  # Frames in a shard, about.


@dataclasses.dataclass(frozen=True)
class BuildConfig:
  """What decides every byte of the dataset, with the files themselves.

  Attributes:
    source: the folder; its videos are found at any depth, by `SUFFIXES`.
    fps: steps a second. 5 fits the embodiment `human`.
    size: the rows and columns of the images, which are cut to this shape about their middle; None
      for the size as it is.
    episode_s: the most seconds of an episode; a longer caption is cut into several of equal length.
  """

  source: str
  fps: float = embodiments.get('human').control_hz
  size: tuple[int, int] | None = None
  episode_s: float = 60.0

  def __post_init__(self):
    if self.fps <= 0 or self.episode_s * self.fps < 1:
      raise ValueError(
        f'fps={self.fps} must be above 0, and episode_s={self.episode_s} at least one step.'
      )


@dataclasses.dataclass(frozen=True)
class Segment:
  """An episode: seconds `start_s ... stop_s` of `file`, a path under the source."""

  file: str
  start_s: float
  stop_s: float
  caption: str


def build(output: str, config: BuildConfig, workers: int = 1) -> bool:
  """Writes the dataset to the directory `output`; whether this call made it.

  Raises:
    ValueError: there is no video, a caption is missing, empty or does not fit its video, or a video
      cannot be read. Names the file. What is finished is kept for the next call.
  """
  segments = find_segments(config)
  return rlds.write(output, _make_dataset(config, segments), workers)


def _make_dataset(config: BuildConfig, segments: list[Segment]) -> rlds.Dataset:
  captions = json.dumps([dataclasses.astuple(segment) for segment in segments])
  return rlds.Dataset(
    name=NAME,
    config='',
    module='data.human_video',
    description='Captioned videos (data/human_video/README.md).',
    features=make_features(config),
    open_split=functools.partial(_open_split, config, segments),
    sizes={'train': [math.ceil((s.stop_s - s.start_s) * config.fps) for s in segments]},
    unit='frames',
    shard_size=SHARD_FRAMES,
    min_shards=rlds.MIN_SHARDS,
    parameters={
      **dataclasses.asdict(config),
      'source': str(_find_source(config).resolve()),
      'captions': hashlib.sha256(captions.encode()).hexdigest()[:16],
      'jpeg_quality': video.JPEG_QUALITY,
    },
  )


def make_features(config: BuildConfig) -> tfds.features.FeaturesDict:
  """RLDS features: one view, called `image`."""
  f = tfds.features
  shape = (*(config.size or (None, None)), 3)  # Videos may differ in size if none is given.
  steps = {
    'observation': {'image': f.Image(shape=shape, encoding_format='jpeg')},
    'language_instruction': f.Text(),
    'is_first': f.Scalar(np.bool_),
    'is_last': f.Scalar(np.bool_),
    'is_terminal': f.Scalar(np.bool_),
  }
  metadata = {
    'file': f.Text(),
    'start_s': f.Scalar(np.float32),
    'fps': f.Scalar(np.float32),
  }
  return f.FeaturesDict({'steps': f.Dataset(steps), 'episode_metadata': metadata})


def _find_source(config: BuildConfig) -> pathlib.Path:
  cure = 'Copy it to a directory, or mount the bucket (gcsfuse).'
  return storage.make_local_path(config.source, '--source', cure)


def find_unused(config: BuildConfig) -> list[str]:
  """The files of the folder that are neither a video nor the caption of one."""
  names = _list_files(_find_source(config))
  texts = {
    pathlib.PurePath(name).with_suffix('.txt').as_posix() for name in names if _is_video(name)
  }
  return [name for name in names if not _is_video(name) and name not in texts | {CAPTIONS}]


def _list_files(source: pathlib.Path) -> list[str]:
  return sorted(path.relative_to(source).as_posix() for path in source.rglob('*') if path.is_file())


def _is_video(name: str) -> bool:
  path = pathlib.PurePath(name)
  # macOS puts a hidden ._NAME.mp4 beside each file of a foreign disk, which is no video.
  return path.suffix.lower() in SUFFIXES and not path.name.startswith('.')


def find_segments(config: BuildConfig) -> list[Segment]:
  """Every episode, in the order of file names and times."""
  source = _find_source(config)
  files = [name for name in _list_files(source) if _is_video(name)]
  if not files:
    raise ValueError(
      f'{source} holds no video; looked at any depth for files that end in {", ".join(SUFFIXES)}.'
    )
  captions = _read_captions(source, files)
  segments = []
  for file in progress.track(files, 'reading video headers', len(files), 'files'):
    fps, seconds = video.probe(source / file)
    if fps < config.fps - 0.5:  # 29.97 is as good as 30.
      raise ValueError(
        f'{source / file} has {fps:.4g} frames a second, fewer than fps={config.fps:g} asks for.'
      )
    for start_s, stop_s, caption in sorted(captions[file]):
      # A header may round the length, and the last frame lasts; infinity is the end of the video.
      is_too_late = seconds + video.LAST_FRAME_S < stop_s < np.inf
      if not 0 <= start_s < min(stop_s, seconds) or is_too_late:
        raise ValueError(
          f'{source / file} lasts {seconds:.2f} s; a caption is about {start_s:g} to {stop_s:g} s: '
          f'{caption!r}.'
        )
      segments += _cut(Segment(file, start_s, min(stop_s, seconds), caption), config)
  return segments


def _cut(segment: Segment, config: BuildConfig) -> Iterator[Segment]:
  """Pieces of about equal length, each a whole number of steps but for the last."""
  # Less a rounding error, which would ask for one step too many.
  steps = math.ceil((segment.stop_s - segment.start_s) * config.fps - 1e-6)
  longest = math.floor(config.episode_s * config.fps)
  count = math.ceil(steps / longest)
  starts = [segment.start_s + steps * i // count / config.fps for i in range(count)]
  for start_s, stop_s in itertools.pairwise([*starts, segment.stop_s]):
    yield dataclasses.replace(segment, start_s=start_s, stop_s=stop_s)


def _read_captions(
  source: pathlib.Path, files: list[str]
) -> dict[str, list[tuple[float, float, str]]]:
  """Per file, (start, stop, caption): those of captions.jsonl, else the text file beside the
  video.
  """
  captions = {file: [] for file in files}
  path = source / CAPTIONS
  for number, row in lerobot_files.number_lines(path) if path.exists() else ():
    try:
      start_s, stop_s = float(row.get('start', 0)), float(row.get('end', np.inf))
      captions[row['file']].append((start_s, stop_s, row['caption'].strip()))
    except KeyError as error:
      raise ValueError(
        f'Line {number} of {path}: there is no {error} (expected file, caption and perhaps start '
        f'and end in seconds, of a file in {source}).'
      ) from error
    except (ValueError, TypeError, AttributeError) as error:
      raise ValueError(f'Line {number} of {path} cannot be used: {error}.') from error

  for file in files:
    text = (source / file).with_suffix('.txt')
    if not captions[file] and text.exists():
      captions[file].append((0.0, np.inf, text.read_text(lerobot_files.ENCODING).strip()))
  _check_captions(source, captions)
  return captions


def _check_captions(
  source: pathlib.Path, captions: dict[str, list[tuple[float, float, str]]]
) -> None:
  bare = [
    file
    for file, spans in captions.items()
    if not spans or not all(caption for *_, caption in spans)
  ]
  if bare:
    raise ValueError(
      f'{len(bare)} videos in {source} have no caption, or an empty one: {", ".join(bare[:10])}. '
      f'Put a line into {CAPTIONS}, or the text into a .txt file of the same name.'
    )


def _open_split(
  config: BuildConfig, segments: list[Segment], split: str
) -> Callable[[int], dict[str, Any]]:
  return lambda index: make_episode(config, segments[index])


def make_episode(config: BuildConfig, segment: Segment) -> dict[str, Any]:
  """The TFDS example of an episode, images already encoded."""
  path = _find_source(config) / segment.file
  frames = video.read_every(path, segment.start_s, segment.stop_s, config.fps)
  # All at once: which step is the last is known only when the video has been read.
  images = [_encode(frame, config.size) for frame in frames]
  last = len(images) - 1
  return {
    'steps': [
      {
        'observation': {'image': image},
        'language_instruction': segment.caption,
        'is_first': t == 0,
        'is_last': t == last,
        'is_terminal': False,
      }
      for t, image in enumerate(images)
    ],
    'episode_metadata': {'file': segment.file, 'start_s': segment.start_s, 'fps': config.fps},
  }


def _encode(image: np.ndarray, size: tuple[int, int] | None) -> io.BytesIO:
  if size:
    rows, columns = size
    image = _crop(image, rows / columns)
  return video.to_jpeg(image, size)


def _crop(image: np.ndarray, aspect: float) -> np.ndarray:
  """The largest part about the middle whose rows over columns are `aspect`."""
  rows, columns = image.shape[:2]
  height = min(rows, round(columns * aspect))
  width = min(columns, round(rows / aspect))
  top = (rows - height) // 2
  left = (columns - width) // 2
  return image[top : top + height, left : left + width]
