r"""Makes a video-only dataset of a folder of captioned videos, for co-training without states and
actions.

python -m data.human_video --source=~/videos --output=~/data/human_video/1.0.0 \
  --size=352x640 --workers=8
"""

from __future__ import annotations

from absl import flags

from data import video
from data.human_video import builder
from wam_jax import cli

_SOURCE = flags.DEFINE_string(
  'source', None, f'Folder of videos, with {builder.CAPTIONS} or NAME.txt beside NAME.mp4.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to make, such as NAME/1.0.0.')
_FPS = flags.DEFINE_float(
  'fps', builder.BuildConfig.fps, 'Steps a second; the default fits the embodiment `human`.'
)
_SIZE = flags.DEFINE_string(
  'size',
  '',
  'ROWSxCOLUMNS of the images, cut about the middle to this shape; empty for the size as it is.',
)
_EPISODE_S = flags.DEFINE_float(
  'episode_s', builder.BuildConfig.episode_s, 'Seconds of an episode, at most.'
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes; the dataset does not depend on it.', lower_bound=1
)


def main(unused_argv: list[str]) -> None:
  config = builder.BuildConfig(
    _SOURCE.value, _FPS.value, video.parse_size(_SIZE.value), _EPISODE_S.value
  )
  if unused := builder.find_unused(config):
    more = f' and {len(unused) - 10} more' if len(unused) > 10 else ''
    print(f'not used, {len(unused)} files: {", ".join(unused[:10])}{more}')
  made = builder.build(_OUTPUT.value, config, _WORKERS.value)
  print(_OUTPUT.value if made else f'already there: {_OUTPUT.value}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['source', 'output'])
  cli.run(main)
