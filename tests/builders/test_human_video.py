"""A folder of captioned MP4 files becomes video-only episodes at the asked rate."""

from __future__ import annotations

import functools
import json
import shutil
import struct

import av
import cv2
import numpy as np
import pytest

from data.human_video import builder
from tests import programs
from tests import videos
from tests.builders import lerobot_dirs as dirs
from wam_jax.data import embodiments
from wam_jax.data import sources
from wam_jax.data import windows

HUMAN = embodiments.get('human')
# Grey of frame i; 6 apart, so that compression cannot take one for another.
shade = lambda i: 20 + 6 * (i % 36)


@pytest.fixture
def folder(tmp_path):
  """Three seconds at 15 fps with two captions, two seconds at 24 fps in a subfolder with a text
  file.
  """
  dirs.write_video(tmp_path / 'videos/a.mp4', [shade(i) for i in range(45)], fps=15)
  dirs.write_video(tmp_path / 'videos/more/b.mp4', [shade(i) for i in range(48)], fps=24)
  dirs.write_lines(
    tmp_path / 'videos/captions.jsonl',
    [
      {'file': 'a.mp4', 'caption': 'stirs the soup', 'start': 1, 'end': 3.0},
      {'file': 'a.mp4', 'caption': ' opens the lid ', 'end': 1},
    ],
  )
  (tmp_path / 'videos/more/b.txt').write_text('waves\n')
  return tmp_path / 'videos'


def _config(folder, **changes):
  return builder.BuildConfig(str(folder), **changes)


def _episodes(path):
  return sources.Episodes(str(path), 'train', HUMAN)


def _shades(episode):
  return [int(episode.decode('image', t).mean().round()) for t in range(episode.length)]


def test_every_caption_is_an_episode_of_what_was_shown(folder, tmp_path):
  assert builder.build(tmp_path / 'out', _config(folder))
  episodes = _episodes(tmp_path / 'out')
  assert [episodes[i].texts(0) for i in range(3)] == [
    ('opens the lid',),
    ('stirs the soup',),
    ('waves',),
  ]
  # At 24 fps, 0.2 s is between frames 4 and 5, and frame 4 is still shown.
  for i, frames in enumerate(
    [range(0, 15, 3), range(15, 45, 3), [0, 4, 9, 14, 19, 24, 28, 33, 38, 43]]
  ):
    np.testing.assert_allclose(_shades(episodes[i]), [shade(f) for f in frames], atol=2)
  # A second call finds it there.
  assert not builder.build(tmp_path / 'out', _config(folder))
  assert episodes[0].state_TX.shape == (5, 0)
  assert episodes[0].action_TU.shape == (5, 0)


def test_another_rate_and_shorter_episodes(folder, tmp_path):
  builder.build(tmp_path / 'out', _config(folder, fps=15, episode_s=0.8), workers=2)
  episodes = _episodes(tmp_path / 'out')
  lengths = [episodes[i].length for i in range(len(episodes))]
  # At most 0.8 s of 15 frames a second: 15 frames are cut into 7 + 8, 30 into three.
  assert lengths[:5] == [7, 8, 10, 10, 10]
  # Nothing twice, nothing left out.
  shown = [value for i in range(5) for value in _shades(episodes[i])]
  np.testing.assert_allclose(shown, [shade(f) for f in range(45)], atol=2)


def test_images_are_cut_about_the_middle(tmp_path):
  # The middle 40 columns of 40 x 100 are the square that is kept.
  image = np.zeros((40, 100, 3), np.uint8)
  image[:, 30:70] = 200
  square = builder._encode(image, (16, 16)).getvalue()
  np.testing.assert_allclose(
    cv2.imdecode(np.frombuffer(square, np.uint8), 1), np.full((16, 16, 3), 200), atol=2
  )


def turn_left(path):
  """Has a player show an MP4 turned by 90 degrees counterclockwise, as its header can say."""
  matrix = lambda *numbers: struct.pack('>9i', *(round(65536 * x) for x in numbers))
  as_it_lies = matrix(1, 0, 0, 0, 1, 0, 0, 0, 16384)
  turned = matrix(0, -1, 0, 1, 0, 0, 0, 0, 16384)
  file, track = path.read_bytes().split(b'tkhd')
  assert as_it_lies in track[:96]
  path.write_bytes(file + b'tkhd' + track.replace(as_it_lies, turned, 1))


def test_a_video_filmed_upright_is_turned(folder, tmp_path):
  """Telephones store the turn in the header; the picture itself lies on its side."""
  (folder / 'captions.jsonl').unlink()
  shutil.rmtree(folder / 'more')
  with av.open(str(folder / 'a.mp4'), 'w') as container:
    stream = container.add_stream('libx264', rate=15)
    stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32] = 200  # Bright on the left.
    for _ in range(15):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
    container.mux(stream.encode())
  turn_left(folder / 'a.mp4')
  (folder / 'a.txt').write_text('waves')
  builder.build(tmp_path / 'out', _config(folder))
  image = _episodes(tmp_path / 'out')[0].decode('image', 0)
  assert image.shape == (64, 48, 3)
  # 90 degrees counterclockwise: the left comes down.
  assert image[36:].mean() > 180
  assert image[:28].mean() < 20


def _write(path, codec, **options):
  """Three seconds at 15 fps."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=15, options={'g': '8', 'threads': '1', **options})
    stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
    for i in range(45):
      image = np.full((48, 64, 3), shade(i), np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
    container.mux(stream.encode())


# AVI has no times of frames, and B frames lie in another order; MPEG streams have no index, and
# what FFmpeg takes for the length of a short .mpg is a second short.
@pytest.mark.parametrize(
  'name, codec, options',
  [
    ('A.MP4', 'libx264', {'bf': '2'}),
    ('a.MOV', 'libx264', {'bf': '2'}),
    ('a.mkv', 'libx264', {'bf': '2'}),
    ('a.webm', 'libvpx-vp9', {'cpu-used': '8'}),
    ('a.avi', 'libx264', {'bf': '2'}),
    ('a.Ts', 'libx264', {'bf': '2'}),
    ('a.mpg', 'mpeg2video', {'bf': '2'}),
  ],
)
def test_usual_containers_in_any_case(tmp_path, name, codec, options):
  (tmp_path / 'videos').mkdir()
  _write(tmp_path / 'videos' / name, codec, **options)
  dirs.write_lines(
    tmp_path / 'videos/captions.jsonl',
    [
      {'file': name, 'caption': 'opens the lid', 'end': 1},
      {'file': name, 'caption': 'stirs', 'start': 1},
    ],
  )
  builder.build(tmp_path / 'out', _config(tmp_path / 'videos'))
  episodes = _episodes(tmp_path / 'out')
  for i, frames in enumerate([range(0, 15, 3), range(15, 45, 3)]):
    np.testing.assert_allclose(_shades(episodes[i]), [shade(f) for f in frames], atol=4)


def test_captions_as_editors_leave_them(folder):
  """Marked at the beginning, as on Windows; an object over lines; what Unicode ends lines with."""
  row = {'file': 'a.mp4', 'caption': 'stirs\u2028the\x85soup', 'end': 1}
  text = json.dumps(row, indent=1, ensure_ascii=False)
  (folder / 'captions.jsonl').write_text(f'\ufeff{text}\n{{"file": "a.mp4"}}')
  (folder / 'more/b.txt').write_text('\ufeffwaves')
  with pytest.raises(ValueError, match="Line 6 of .*captions.jsonl: there is no 'caption'"):
    builder.find_segments(_config(folder))
  (folder / 'captions.jsonl').write_text(f'\ufeff{text}')
  captions = [segment.caption for segment in builder.find_segments(_config(folder))]
  assert captions == ['stirs\u2028the\x85soup', 'waves']


def test_what_is_not_used_is_named(folder):
  for name in ('notes.md', '._a.mp4', 'more/c.txt'):
    (folder / name).write_text('x')
  assert builder.find_unused(_config(folder)) == ['._a.mp4', 'more/c.txt', 'notes.md']
  assert len(builder.find_segments(_config(folder))) == 3


@pytest.mark.parametrize(
  'damage, message',
  [
    (lambda d: shutil.rmtree(d), 'holds no video; looked at any depth for files that end in .mp4'),
    (
      lambda d: (d / 'more/b.txt').unlink(),
      '1 videos in .* have no caption, or an empty one: more/b.mp4',
    ),
    (lambda d: (d / 'more/b.txt').write_text(' \n'), 'or an empty one: more/b.mp4'),
    (
      lambda d: dirs.write_lines(d / 'captions.jsonl', [{'file': 'c.mp4', 'caption': 'x'}]),
      "Line 1 .* no 'c.mp4'",
    ),
    (
      lambda d: dirs.write_lines(d / 'captions.jsonl', [{'file': 'a.mp4'}]),
      "Line 1 .*captions.jsonl: .* no 'caption'",
    ),
    (lambda d: (d / 'captions.jsonl').write_text('{}\n{'), "Line 1 .* no 'file'"),
    (
      lambda d: (d / 'captions.jsonl').write_text('\n{'),
      'Line 2 of .*captions.jsonl cannot be used',
    ),
    (
      lambda d: dirs.write_lines(
        d / 'captions.jsonl', [{'file': 'a.mp4', 'caption': 'x', 'start': 3}]
      ),
      "a.mp4 lasts 3.00 s; a caption is about 3 to inf s: 'x'",
    ),
    (
      lambda d: dirs.write_lines(
        d / 'captions.jsonl', [{'file': 'a.mp4', 'caption': 'x', 'start': 2, 'end': 5}]
      ),
      "a.mp4 lasts 3.00 s; a caption is about 2 to 5 s: 'x'",
    ),
    (
      lambda d: dirs.write_video(d / 'more/b.mp4', [20] * 8, fps=4),
      'b.mp4 has 4 frames a second, fewer than fps=5',
    ),
    (
      lambda d: (d / 'a.mp4').write_bytes((d / 'a.mp4').read_bytes()[:500]),
      'a.mp4 cannot be decoded',
    ),
  ],
)
def test_damage_is_named_and_nothing_appears(folder, tmp_path, damage, message):
  damage(folder)
  with pytest.raises(ValueError, match=message):
    builder.build(tmp_path / 'out', _config(folder))
  assert not (tmp_path / 'out').exists()
  assert not (tmp_path / '.out.partial').exists()


def test_a_video_that_ends_early_is_named(tmp_path):
  """Its index, in front, promises ten seconds; the frames of the last are missing."""
  dirs.write_video(tmp_path / 'videos/a.mp4', [shade(i) for i in range(150)], fps=15)
  with (
    av.open(str(tmp_path / 'videos/a.mp4')) as source,
    av.open(str(tmp_path / 'videos/b.mp4'), 'w', options={'movflags': 'faststart'}) as output,
  ):
    stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
    for packet in source.demux(video=0):
      if packet.dts is not None:
        packet.stream = stream
        output.mux(packet)
  whole = (tmp_path / 'videos/b.mp4').read_bytes()
  # What a decoder says of such a file depends on where it is cut.
  (tmp_path / 'videos/b.mp4').write_bytes(whole[: int(0.7 * len(whole))])
  (tmp_path / 'videos/a.mp4').unlink()
  (tmp_path / 'videos/b.txt').write_text('waves')
  with pytest.raises(
    ValueError, match='b.mp4 (cannot be decoded|has its last frame at|has a corrupt frame)'
  ):
    builder.build(tmp_path / 'out', _config(tmp_path / 'videos'))


def test_other_captions_are_another_dataset(folder, tmp_path):
  builder.build(tmp_path / 'out', _config(folder))
  (folder / 'more/b.txt').write_text('bows')
  with pytest.raises(ValueError, match='made with other parameters: captions='):
    builder.build(tmp_path / 'out', _config(folder))
  with pytest.raises(ValueError, match='fps=0'):
    _config(folder, fps=0)


def test_the_command_makes_frames_of_the_asked_size(folder, tmp_path):
  run = functools.partial(programs.run, 'data.human_video', f'--source={folder}')
  done = run(f'--output={tmp_path}/out', '--size=32x64')
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{tmp_path}/out\n'
  assert '25/25 frames' in done.stderr
  assert _episodes(tmp_path / 'out')[0].decode('image', 0).shape == (32, 64, 3)
  refused = run(f'--output={tmp_path}/other', '--size=32')
  assert refused.returncode == 2
  assert refused.stderr.startswith("error: size='32' must be ROWSxCOLUMNS")


def test_real_videos_give_windows(tmp_path, sample_droid):
  filmed = sorted(sample_droid.glob('*.mp4'))
  (tmp_path / 'videos').mkdir()
  for path in filmed:
    (tmp_path / 'videos' / path.name).symlink_to(path)
  dirs.write_lines(
    tmp_path / 'videos/captions.jsonl',
    [{'file': path.name, 'caption': 'moves the pan forward'} for path in filmed],
  )
  builder.build(tmp_path / 'out', _config(tmp_path / 'videos'), workers=2)
  episodes = _episodes(tmp_path / 'out')
  # 419 frames at 15 fps, every third.
  assert [episodes[i].length for i in range(3)] == [140] * 3
  assert len(windows.make_anchors(episodes)) == 3 * (140 - 8)
  frames = videos.read(sample_droid / 'wrist_image_left.mp4')[0][::3]
  errors = [
    np.abs(episodes[2].decode('image', t).astype(int) - frames[t]).mean() for t in (0, 70, 139)
  ]
  # Mean absolute error of JPEG at quality 95, of 255.
  assert max(errors) < 3
