"""Our own checkpoints, seen as files: what a conversion writes and reads without loading them.

`wam_jax.checkpoint` owns the layout; see there.
"""
from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from etils import epath

from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib
from wam_jax.data import normalize
from wam_jax.interop import arrays
from wam_jax.interop import io

ITEMS = {'dit': ('params', ''), 'text': ('frozen', 'text/params/'), 'image': ('frozen', 'image/params/'),
         'tokenizer': ('frozen', 'tokenizer/params/')}  # By part: item of the checkpoint, and where in it.
MEAN_STD = 'tokenizer/mean_std_2C'


@dataclasses.dataclass(frozen=True)
class Own:
  """A checkpoint of a run, opened.

  Attributes:
    config: of the run.
    data: what it knows of robots, as `normalize.to_metadata` gives it.
    source: what `write_metadata` was told, {} for a run.
    averaged: the weights are averages over training steps.
    frozen, params: arrays by '/'-separated path.
  """

  workdir: pathlib.Path
  step: int
  config: cfg.TrainConfig
  data: Mapping[str, Any]
  source: Mapping[str, Any]
  averaged: bool
  params: Mapping[str, arrays.Array]
  frozen: Mapping[str, arrays.Array]

  def part(self, name: str) -> dict[str, arrays.Array]:
    """The arrays of one part, by the paths of its table."""
    item, prefix = ITEMS[name]
    held = self.params if item == 'params' else self.frozen
    return {path.removeprefix(prefix): x for path, x in held.items() if path.startswith(prefix)}

  def robots(self) -> dict[str, normalize.KnownEmbodiment]:
    """By name."""
    return normalize.from_metadata(self.data)


def is_workdir(path: epath.Path) -> bool:
  """Whether a run or an import wrote the directory."""
  return (path / 'checkpoints').is_dir()


def open_workdir(workdir: pathlib.Path, step: int | None) -> Own:
  """Checkpoint `step`, or the newest.

  Raises:
    ValueError: there is none, or it is not whole.
  """
  if not is_workdir(epath.Path(workdir)):
    raise ValueError(f'--source={workdir} is no workdir: it has no checkpoints/ directory.')
  places = {int(p.name): p for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()}
  if not places or step not in (None, *places):
    raise ValueError(f'{workdir} has no checkpoint{"" if step is None else f" of step {step}"}; it has '
                     f'{", ".join(map(str, sorted(places))) or "none"}.')
  step = max(places) if step is None else step
  place = places[step]
  metadata = io.read_json(epath.Path(place / 'metadata' / 'metadata'))
  missing = [name for name in metadata['items'] if not (place / name).is_dir()]
  if missing:
    raise ValueError(f'{place} lacks {", ".join(missing)}; pass another --checkpoint_step.')
  averaged = 'ema_params' in metadata['items']
  return Own(workdir, step, cfg.from_config_dict(workdir_lib.fill_config(metadata['config'])), metadata['data'],
             metadata.get('source', {}), averaged, arrays.open_item(place / ('ema_params' if averaged else 'params')),
             arrays.open_item(place / 'frozen'))


def checkpoint_place(workdir: pathlib.Path) -> pathlib.Path:
  """Where the items of an imported checkpoint go: step 0."""
  return workdir / 'checkpoints' / '0'


def write_metadata(workdir: pathlib.Path, config: cfg.TrainConfig, data: Mapping[str, Any],
                   source: Mapping[str, Any]) -> None:
  """config.json of the workdir and the item `metadata` of its checkpoint.

  Args:
    source: where the weights came from and how; kept for the record.
  """
  plain = json.loads(json.dumps(cfg.to_dict(config)))
  (workdir / 'config.json').write_text(json.dumps(plain, indent=1) + '\n')
  place = checkpoint_place(workdir) / 'metadata'
  place.mkdir()
  (place / 'metadata').write_text(json.dumps(
      {'items': ['frozen', 'params'], 'config': plain, 'data': data, 'source': source}))


def vocabulary_name(vocabulary: epath.Path) -> str:
  """What the text encoder's vocabulary is called in a workdir."""
  return workdir_lib.VOCABULARIES[vocabulary.suffix != '.json']


def copy_vocabulary(workdir: pathlib.Path, vocabulary: epath.Path) -> None:
  """Copies the text encoder's vocabulary into the workdir."""
  with vocabulary.open('rb') as source, (workdir / vocabulary_name(vocabulary)).open('wb') as target:
    shutil.copyfileobj(source, target)
