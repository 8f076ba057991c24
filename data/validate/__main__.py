r"""Validates a dataset for one robot: prints a dataset card, draws pictures, and fails on what
would spoil training.

python -m data.validate --dataset=~/data/tabletop/arm_reach/1.0.0 --embodiment=tabletop_arm \
  [--config=configs/tiny.py] [--output=DIR] [--json=FILE]

Every record is read, its images checked to be whole; `--episodes` of them, spread over the dataset,
are decoded. With the config of a run it is also checked that the model's shapes hold the robot and
that no prompt is cut. Exit status 1 if anything failed. What it cannot see: whether two cameras of
equal rank (left and right) are swapped, and a damaged JPEG that still decodes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

from absl import flags
from etils import epath
from ml_collections import config_flags

from data import choosing
from data.validate import card
from data.validate import checks
from data.validate import findings as findings_lib
from data.validate import video
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import storage
from wam_jax.data import beside
from wam_jax.data import embodiments
from wam_jax.data import exclusions
from wam_jax.data import shapes
from wam_jax.data import sources

_DATASET = flags.DEFINE_string(
  'dataset', None, 'TFDS directory with dataset_info.json, in ArrayRecord format.'
)
_EMBODIMENT = cli.define_embodiment('The robot; by default the record beside the dataset.')
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config of the run that the dataset is for.', lock_config=True
)
_SPLIT = flags.DEFINE_string('split', 'train', 'Split; slices such as train[:100] are allowed.')
_EPISODES = flags.DEFINE_integer(
  'episodes', 20, 'Episodes whose images are decoded.', lower_bound=1
)
_IMAGES = flags.DEFINE_bool(
  'images',
  True,
  'Read every image to see that it is whole; --noimages reads only those '
  'that are decoded, much faster where there is a frame index on an object store.',
)
_OUTPUT = flags.DEFINE_string(
  'output', '', 'Directory of the pictures; without it they go beside the dataset.'
)
_PICTURES = flags.DEFINE_bool('pictures', True, 'Draw them; needs matplotlib (extra `sim`).')
_ACCEPT = flags.DEFINE_list(
  'accept',
  [],
  'Kinds of failure that are known and count as warnings: '
  + '; '.join(f'{kind}: {findings_lib.KINDS[kind]}' for kind in findings_lib.ACCEPTABLE)
  + '.',
)
_WRITE_EXCLUSIONS = flags.DEFINE_bool(
  'write_exclusions',
  False,
  'Leave out the episodes that cannot be read whole, for all that read the dataset: adds them to '
  'exclusions.json beside it, or to the file of --exclude (python -m data.exclude).',
)
choosing.define()
cli.define_json()


def main(unused_argv: list[str]) -> int:
  if _PICTURES.value and importlib.util.find_spec('matplotlib') is None:
    raise ValueError("The pictures need matplotlib: pip install -e '.[sim]', or give --nopictures.")
  if _OUTPUT.value and _PICTURES.value:
    storage.check_directory(storage.make_path(_OUTPUT.value, '--output'), '--output')
  findings = findings_lib.Findings(frozenset(_ACCEPT.value))
  record = embodiments.resolve(_EMBODIMENT.value, _DATASET.value)
  episodes = choosing.open_episodes(_DATASET.value, _SPLIT.value, record)
  decoded = video.spread(len(episodes), _EPISODES.value)
  with_images = range(len(episodes)) if _IMAGES.value else decoded
  text = _read_text_config(episodes) if _CONFIG.value is not None else None
  result = checks.run(episodes, decoded, with_images, findings, text)

  pictures = []
  if _PICTURES.value and result and result.clips:
    pictures = [str(path) for path in _draw(episodes, result)]
  if result:
    print('\n'.join(card.lines(result.card)))
  print()
  for path in pictures:
    print(f'written: {path}')
  print('\n'.join(findings.lines()))
  if _WRITE_EXCLUSIONS.value and findings.damaged:
    print(_exclude(episodes, findings.damaged))
  cli.write_json(
    {'card': result and result.card, 'pictures': pictures, **findings.to_dict()},
  )
  return 1 if findings.count('fail') else 0


def _read_text_config(episodes: sources.Episodes) -> cfg.TextConfig:
  """That of the run; its model must hold the robot."""
  model = cfg.from_config_dict(cli.read_config(_CONFIG)).model
  shapes.check_robots(model, [episodes.record])
  return model.text


def _exclude(episodes: sources.Episodes, damaged: Mapping[int, str]) -> str:
  """Leaves the damaged episodes out from now on; says so."""
  known = exclusions.open_new(episodes.path, episodes.exclude)
  for i, why in sorted(damaged.items()):
    split, number = episodes.find_place(i)
    reason = why.removesuffix(episodes.remedy(i)).strip()
    known = known.with_entries(split, [exclusions.Entry(episode=number, why=reason)])
  known.write()
  return (
    f'written: {known.place}: {len(damaged)} damaged episodes are left out from now on; validate '
    'again to see that the others pass'
  )


def _draw(episodes: sources.Episodes, result: checks.Result) -> Iterator[epath.Path]:
  """Writes the pictures; yields where."""
  from data.validate import pictures  # matplotlib takes a second, and is not everywhere.

  record, clips = episodes.record, result.clips
  name = '/'.join(episodes.path.parts[-2:])
  title = f'{name} {episodes.split} as {record.name}'
  made = {'sheet': pictures.draw_sheet(record, clips, title)}
  for part in ('state', 'action'):
    if getattr(record, part):
      made[part] = pictures.draw_plots(record, clips, result.statistics, part, title)
  for what, png in made.items():
    yield _write(episodes.path, f'wam_validation_{record.name}_{what}.png', png)


def _write(dataset: epath.Path, name: str, content: bytes) -> epath.Path:
  if not _OUTPUT.value:
    return beside.write(dataset, name, content)
  path = storage.make_path(_OUTPUT.value, '--output') / name
  storage.write_report(path, content)
  return path


if __name__ == '__main__':
  flags.mark_flags_as_required(['dataset'])
  cli.run(main)
