"""LeRobot directories for tests: a synthetic one whose pixels and numbers tell their time, and
version 2 repacked as 3.

At step t of episode e the state is (t, 10 e, -t, 0.5), the action the state of the next step, and a
camera shows `shade(camera, e, t)` everywhere.
"""

from __future__ import annotations

import fractions
import json
import pathlib
import shutil

import av
import numpy as np
import pyarrow as pa
from pyarrow import parquet

FPS = 10
SIZE = 48, 64
CAMERAS = 'front', 'wrist'
TASKS = 'pick up the cube', 'put it down', 'wave'
SCALARS = {
  'timestamp': 'float32',
  'frame_index': 'int64',
  'episode_index': 'int64',
  'index': 'int64',
  'task_index': 'int64',
}


def shade(camera: str, episode: int, t: int) -> int:
  """Grey value; 6 apart, so that compression cannot take one for another."""
  return 20 + 6 * ((7 * episode + t + 11 * (camera == 'wrist')) % 36)


def state(episode: int, t: int) -> list[float]:
  return [t, 10 * episode, -t, 0.5]


def tasks_of(episode: int, length: int) -> list[int]:
  """Episode 0 changes its task in the middle."""
  return [1 if episode == 0 and t >= length // 2 else episode % 2 for t in range(length)]


def write_video(
  path: pathlib.Path, shades: list[int], fps: int = FPS, size: tuple[int, int] = SIZE
) -> None:
  """H.264 with B-frames, a key frame every 8."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(
      'libx264', rate=fps, options={'g': '8', 'bf': '2', 'threads': '1'}
    )
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    for shown in shades:
      frame = av.VideoFrame.from_ndarray(np.full((*size, 3), shown, np.uint8), format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_table(path: pathlib.Path, columns: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pa.table(columns), path)


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def make_rows(episode: int, length: int, first: int) -> dict:
  """Columns of a parquet file."""
  steps = range(length)
  # States as float32, actions as float64: both occur, and both are read.
  floats = pa.list_(pa.float32())
  doubles = pa.list_(pa.float64())
  return {
    'observation.state': pa.array([state(episode, t) for t in steps], floats),
    'action': pa.array([state(episode, t + 1) for t in steps], doubles),
    'observation.effort': pa.array([[t + 0.25, t + 0.75] for t in steps], floats),
    'next.reward': pa.array([float(t == length - 1) for t in steps], pa.float32()),
    'next.done': pa.array([t == length - 1 for t in steps]),
    'note': pa.array([f'step {t}' for t in steps]),
    'annotation.human.task': pa.array([2] * length, pa.int64()),
    'timestamp': pa.array([t / FPS for t in steps], pa.float32()),
    'frame_index': pa.array(steps, pa.int64()),
    'episode_index': pa.array([episode] * length, pa.int64()),
    'index': pa.array(range(first, first + length), pa.int64()),
    'task_index': pa.array(tasks_of(episode, length), pa.int64()),
  }


def make_features() -> dict:
  numbers = {
    'observation.state': ('float32', 4),
    'action': ('float64', 4),
    'observation.effort': ('float32', 2),
    'next.reward': ('float32', 1),
    'next.done': ('bool', 1),
    'note': ('string', 1),
    'annotation.human.task': ('int64', 1),
    **{key: (kind, 1) for key, kind in SCALARS.items()},
  }
  camera = {'dtype': 'video', 'shape': [*SIZE, 3], 'names': ['height', 'width', 'channels']}
  cameras = {f'observation.images.{name}': dict(camera) for name in CAMERAS}
  vectors = {
    key: {'dtype': kind, 'shape': [width], 'names': None} for key, (kind, width) in numbers.items()
  }
  return cameras | vectors


def write_v2(root: pathlib.Path, lengths: list[int], version: str = 'v2.1') -> pathlib.Path:
  """A whole version 2 directory; its files lie two episodes to a chunk."""
  first = 0
  for episode, length in enumerate(lengths):
    chunk = f'chunk-{episode // 2:03d}'
    name = f'episode_{episode:06d}'
    rows = make_rows(episode, length, first)
    write_table(root / f'data/{chunk}/{name}.parquet', rows)
    for camera in CAMERAS:
      shades = [shade(camera, episode, t) for t in range(length)]
      write_video(root / f'videos/{chunk}/observation.images.{camera}/{name}.mp4', shades)
    first += length
  write_lines(
    root / 'meta/episodes.jsonl',
    [{'episode_index': e, 'tasks': [], 'length': n} for e, n in enumerate(lengths)],
  )
  write_lines(
    root / 'meta/tasks.jsonl', [{'task_index': i, 'task': task} for i, task in enumerate(TASKS)]
  )
  write_info(
    root,
    {
      'codebase_version': version,
      'robot_type': 'Test Arm',
      'fps': FPS,
      'chunks_size': 2,
      'features': make_features(),
      'splits': {'train': f'0:{len(lengths)}'},
      'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
      'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4',
    },
  )
  return root


def write_packed(
  root: pathlib.Path,
  features: dict[str, dict],
  columns: dict[str, list],
  lengths: list[int],
  fps: int = FPS,
  **info,
) -> pathlib.Path:
  """A version 3 directory of one parquet file and no video.

  Args:
    features: without what LeRobot counts steps by.
    columns: a value a step, of all episodes in order.
    info: of info.json, beside what is usual.
  """
  steps = [(e, t) for e, length in enumerate(lengths) for t in range(length)]
  counted = {
    'timestamp': pa.array([t / fps for _, t in steps], pa.float32()),
    'frame_index': pa.array([t for _, t in steps]),
    'episode_index': pa.array([e for e, _ in steps]),
    'index': pa.array(range(len(steps))),
    'task_index': pa.array([0] * len(steps)),
  }
  scalars = {key: {'dtype': kind, 'shape': [1], 'names': None} for key, kind in SCALARS.items()}
  write_table(root / 'data/chunk-000/file-000.parquet', columns | counted)
  count = len(lengths)
  episodes = {
    'episode_index': list(range(count)),
    'length': lengths,
    'data/chunk_index': [0] * count,
    'data/file_index': [0] * count,
  }
  write_table(root / 'meta/episodes/chunk-000/file-000.parquet', episodes)
  tasks = {'task_index': [0], '__index_level_0__': [TASKS[0]]}
  write_table(root / 'meta/tasks.parquet', tasks)
  described = {
    'codebase_version': 'v3.0',
    'robot_type': root.name,
    'fps': fps,
    'features': features | scalars,
    'splits': {'train': f'0:{count}'},
    'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
    'video_path': None,
  }
  write_info(root, described | info)
  return root


def write_info(root: pathlib.Path, info: dict) -> None:
  (root / 'meta').mkdir(parents=True, exist_ok=True)
  (root / 'meta/info.json').write_text(json.dumps(info))


def edit_info(root: pathlib.Path, **changes) -> None:
  write_info(root, {**json.loads((root / 'meta/info.json').read_text()), **changes})


# What the reference adds under meta/; the same in both versions.
GEAR_FILES = (
  'modality.json',
  'stats.json',
  'relative_stats_dreamzero.json',
  'embodiment.json',
  'step_filter.jsonl',
)


def pack_as_v3(source: pathlib.Path, root: pathlib.Path, per_file: int) -> pathlib.Path:
  """A version 2 directory as version 3, `per_file` episodes to a file; video packets are copied,
  not decoded.
  """
  info = json.loads((source / 'meta/info.json').read_text())
  lengths = [row['length'] for row in read_lines(source / 'meta/episodes.jsonl')]
  rows = []
  for number, first in enumerate(range(0, len(lengths), per_file)):
    packed = {e: lengths[e] for e in range(first, min(first + per_file, len(lengths)))}
    rows += _pack_file(source, root, info, packed, number)
  columns = {key: [row[key] for row in rows] for key in rows[0]}
  write_table(root / 'meta/episodes/chunk-000/file-000.parquet', columns)

  tasks = read_lines(source / 'meta/tasks.jsonl')
  texts = {
    'task_index': [task['task_index'] for task in tasks],
    '__index_level_0__': [task['task'] for task in tasks],  # As pandas calls an index.
  }
  write_table(root / 'meta/tasks.parquet', texts)
  for path in source.glob('meta/*'):
    if path.name in GEAR_FILES:
      shutil.copy(path, root / 'meta' / path.name)
  write_info(
    root,
    {
      **info,
      'codebase_version': 'v3.0',
      'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
      'video_path': 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4',
    },
  )
  return root


def _pack_file(
  source: pathlib.Path, root: pathlib.Path, info: dict, lengths: dict[int, int], number: int
) -> list[dict]:
  """Writes file `number` of rows and of every camera; what meta/episodes says of its episodes.

  Args:
    lengths: the rows of each of these episodes.
  """
  places = [{'episode_chunk': e // info['chunks_size'], 'episode_index': e} for e in lengths]
  tables = [parquet.read_table(source / info['data_path'].format(**place)) for place in places]
  target = root / f'data/chunk-000/file-{number:03d}.parquet'
  target.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pa.concat_tables(tables), target)

  rows = [
    {'episode_index': e, 'length': length, 'data/chunk_index': 0, 'data/file_index': number}
    for e, length in lengths.items()
  ]
  for key in (key for key, feature in info['features'].items() if feature['dtype'] == 'video'):
    paths = [source / info['video_path'].format(video_key=key, **place) for place in places]
    starts = concatenate(paths, root / f'videos/{key}/chunk-000/file-{number:03d}.mp4')
    for row, start, stop in zip(rows, starts, starts[1:], strict=False):
      row[f'videos/{key}/chunk_index'] = 0
      row[f'videos/{key}/file_index'] = number
      row[f'videos/{key}/from_timestamp'] = start
      row[f'videos/{key}/to_timestamp'] = stop
  return rows


def read_lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def concatenate(paths: list[pathlib.Path], target: pathlib.Path) -> list[float]:
  """Copies the packets of several MP4 files into one; the second where each begins, and where the
  last ends.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  starts = [fractions.Fraction(0)]
  with av.open(str(target), 'w') as output:
    stream = None
    for path in paths:
      with av.open(str(path)) as source:
        video = source.streams.video[0]
        stream = stream or output.add_stream_from_template(video, opaque=True)
        offset = int(starts[-1] / video.time_base)
        for packet in source.demux(video):
          # The last packet only flushes the demuxer, and has no time.
          if packet.dts is not None:
            packet.pts += offset
            packet.dts += offset
            packet.stream = stream
            output.mux(packet)
        starts.append(starts[-1] + video.duration * video.time_base)
  return [float(start) for start in starts]
