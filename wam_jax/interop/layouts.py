"""The three layouts in which weights of this family are published: which files hold which part,
under which names.

  dreamzero   one directory of `model*.safetensors` for everything, config.json, experiment_cfg/
  wan         Wan-AI's originals: `diffusion_pytorch_model*.safetensors` and a `.pth` for each
  encoder diffusers   transformer/, vae/, text_encoder/, image_encoder/, tokenizer/, each with its
  config.json; ours also have
              action_modules/

Opening one reads headers and configs, never numbers. The parts are 'dit' (with the action modules),
'text', 'image' and 'tokenizer' (the video VAE).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop import lazy
from wam_jax.interop import sizes
from wam_jax.interop.diffusers import config as diffusers_config
from wam_jax.interop.dreamzero import config as dreamzero_config
from wam_jax.interop.dreamzero import lora
from wam_jax.interop.dreamzero import robots as dreamzero_robots
from wam_jax.interop.files import jsonfile
from wam_jax.interop.files import pth
from wam_jax.interop.files import safetensors
from wam_jax.interop.table import dit
from wam_jax.interop.table import image
from wam_jax.interop.table import rows as rows_lib
from wam_jax.interop.table import text
from wam_jax.interop.table import vae

PARTS = ('dit', 'text', 'image', 'tokenizer')
PREFIXES = {
  'dit': 'action_head.model.',
  'text': 'action_head.text_encoder.',
  'image': 'action_head.image_encoder.model.',
  'tokenizer': 'action_head.vae.model.',
}
ENCODERS = {
  'text': 'models_t5*.pth',
  'image': 'models_clip*.pth',
  'tokenizer': '*VAE*.pth',
}  # Wan-AI's file names.
VOCABULARIES = ('tokenizer.json', 'spiece.model', 'tokenizer.model')
_FLAGS = {'text': 'text_encoder', 'image': 'image_encoder', 'tokenizer': 'vae'}
_REFERENCE = dict(flow=dreamzero_config.FLOW, sample=dreamzero_config.SAMPLE)
_FOLDERS = ('.', 'tokenizer', 'google/umt5-xxl')


@dataclasses.dataclass(frozen=True)
class Options:
  """What the files do not say.

  Attributes:
    layout: '' to find out.
    base: directory that the adapters of a LoRA checkpoint change.
    encoders: by part, a file or directory that holds it, where the source does not.
    image_heads: attention heads of a CLIP of another width than the released one; 0 for the
      released number.
    num_embodiments: categories of action modules that are made new.
  """

  layout: str = ''
  base: epath.Path | None = None
  encoders: Mapping[str, epath.Path] = dataclasses.field(default_factory=dict)
  image_heads: int = 0
  num_embodiments: int = 1


@dataclasses.dataclass(frozen=True)
class Foreign:
  """A checkpoint in one of the layouts, opened.

  Attributes:
    model: from its config files and shapes.
    fields: of a TrainConfig beside `model`, so that it trains and acts as before.
    tables: rows by part; `weights` has the names in them.
    weights: what is there, by part, in the order of the files.
    extra: arrays beside those of the tables, by path in the checkpoint's item `frozen`.
    lacks: one line per set of files that is missing; its part is in no table then.
    fresh: names that no published file holds, made new.
    merged: adapters in `weights`. base: of a LoRA checkpoint.
    robots: of a layout of ours; see `read_robots`.
  """

  layout: str
  path: epath.Path
  model: cfg.ModelConfig
  fields: Mapping[str, Any]
  tables: Mapping[str, list[rows_lib.Row]]
  weights: Mapping[str, Mapping[str, lazy.Weight]]
  extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  lacks: tuple[str, ...] = ()
  fresh: tuple[str, ...] = ()
  merged: int = 0
  base: epath.Path | None = None
  robots: tuple[robot_lib.Robot, ...] = ()

  def problems(self) -> list[str]:
    """One line per weight that is missing, unexpected or misshapen, or for many that are missing
    together.
    """
    shapes = _shapes(self.weights)
    return (
      [*self.lacks]
      + [
        f'{part}: {line}'
        for part, table in self.tables.items()
        for line in rows_lib.list_mismatches(table, shapes[part])
      ]
      + [
        f'{part}: {len(of_part)} weights are unexpected: the config asks for no such part'
        for part, of_part in self.weights.items()
        if of_part and part not in self.tables and not self.lacks
      ]
    )

  def read_robots(self) -> list[robot_lib.Robot]:
    """Robots with statistics; none in layouts that know of no robots.

    Raises:
      ValueError: a DreamZero directory without them.
    """
    if self.layout == 'dreamzero':
      return dreamzero_robots.read_embodiments(self.path, self.model)
    return list(self.robots)

  def find_vocabulary(self) -> epath.Path | None:
    """The text encoder's vocabulary in the source, or in its base."""
    for place in (self.path, self.base):
      if place is not None and (found := find_vocabulary(place)):
        return found
    return None


def find_vocabulary(place: epath.Path) -> epath.Path | None:
  """`place` itself if it is a file, else the vocabulary file in it."""
  if place.exists() and not place.is_dir():
    return place
  return next(
    (
      place / folder / name
      for folder in _FOLDERS
      for name in VOCABULARIES
      if (place / folder / name).exists()
    ),
    None,
  )


def tables(model: cfg.ModelConfig, layout: str) -> dict[str, list[rows_lib.Row]]:
  """The rows of every part that the model has; 'dreamzero' without its prefixes is 'wan'."""
  names = 'diffusers' if layout == 'diffusers' else 'wan'
  parts = {
    'dit': dit.rows(model, names),
    'text': text.rows(model.text, names),
    'tokenizer': vae.rows(model.tokenizer, names),
  }
  if model.image.kind == 'clip':
    parts['image'] = image.rows(model.image, names)
  return {part: parts[part] for part in PARTS if part in parts}


def find_layout(path: epath.Path) -> str:
  """Which layout the directory has.

  Raises:
    ValueError: none of them.
  """
  if not path.is_dir():
    raise ValueError(f'--source={path} is no directory.')
  if (path / 'model_index.json').exists() or (path / 'transformer' / 'config.json').exists():
    return 'diffusers'
  if (path / 'config.json').exists() and 'action_head_cfg' in jsonfile.read(path / 'config.json'):
    return 'dreamzero'
  if any(path.glob('diffusion_pytorch_model*.safetensors*')):
    return 'wan'
  held = ', '.join(sorted(p.name for p in path.iterdir())[:10]) or 'nothing'
  raise ValueError(
    f'--source={path} is in no known layout. Expected config.json with action_head_cfg (dreamzero), '
    f'diffusion_pytorch_model*.safetensors (wan) or transformer/config.json (diffusers); it holds {held}.'
  )


def open_source(path: epath.Path, options: Options) -> Foreign:
  """The checkpoint at `path`.

  Raises:
    ValueError: it is not in that layout, or files are missing, cut or contradict each other.
  """
  found = find_layout(path)
  if options.layout not in ('', found):
    raise ValueError(
      f'--source={path} is in the layout {found!r}, not {options.layout!r}; pass --layout={found} or '
      'leave it out.'
    )
  if options.base is not None and found != 'dreamzero':
    raise ValueError(
      f'--base is for LoRA checkpoints of DreamZero; --source={path} is in the layout {found!r}.'
    )
  return {'dreamzero': _open_dreamzero, 'wan': _open_wan, 'diffusers': _open_diffusers}[found](
    path, options
  )


def _open_dreamzero(path: epath.Path, options: Options) -> Foreign:
  head, conf = dreamzero_config.read_head(path), dreamzero_robots.read_conf(path)
  weights, adapters = lora.split(safetensors.open_weights(path, 'model'))
  parts, problems = _split_parts(weights)
  errors.fail(
    f'{path} has weights that belong to no part of a DreamZero model:',
    problems,
    'It may be of another model.',
  )
  recorded = dreamzero_config.recorded_base(head, conf)
  partial = bool(conf.get('save_lora_only')) or any(name not in weights for name in adapters)
  lacks = ()
  if not partial and options.base is not None:
    raise ValueError(f'--source={path} holds all its weights; leave out --base.')
  if partial and options.base is not None:
    parts = _add_base(path, recorded, parts, options)
  elif partial:
    lacks = (
      f'it holds only weights that were trained, {sum(map(len, parts.values()))} and {len(adapters)} adapters '
      f'(LoRA); the others are those of {recorded!r}: pass --base=DIRECTORY of it',
    )
  if adapters and not lacks:
    whole = {
      PREFIXES[part] + name: w for part, of_part in parts.items() for name, w in of_part.items()
    }
    parts, _ = _split_parts(
      lora.merge(whole, adapters, head.get('lora_rank', 4), head.get('lora_alpha', 4))
    )
  head = _with_heads(head, options)
  model = dreamzero_config.model_config(head, _shapes(parts), bool(conf.get('eval_bf16', False)))
  table = tables(model, 'dreamzero')
  return Foreign(
    'dreamzero',
    path,
    model,
    dreamzero_config.flow_and_sample(head),
    {} if lacks else table,
    parts,
    lacks=lacks,
    merged=len(adapters),
    base=options.base,
  )


def _split_parts(
  weights: Mapping[str, lazy.Weight],
) -> tuple[dict[str, dict[str, lazy.Weight]], list[str]]:
  """(weights by part without prefix, names that belong to none)."""
  parts: dict[str, dict[str, lazy.Weight]] = {part: {} for part in PARTS}
  unknown = []
  for name, weight in weights.items():
    part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
    if part is None:
      unknown.append(f'{name} {list(weight.shape)}')
    else:
      parts[part][name.removeprefix(PREFIXES[part])] = weight
  return parts, unknown


def _add_base(
  path: epath.Path, recorded: str, parts: Mapping[str, Mapping[str, lazy.Weight]], options: Options
) -> dict[str, dict[str, lazy.Weight]]:
  """The base's weights, with those of a checkpoint of trained weights in their place."""
  if not any(recorded in name for name in (*options.base.parts, *options.base.resolve().parts)):
    raise ValueError(
      f'--source={path} was trained on {recorded!r}, but --base={options.base} is something else. Pass '
      f'the right one; if it is the same under another name, link or rename it to {recorded!r}.'
    )
  base = open_source(options.base, dataclasses.replace(options, layout='', base=None))
  errors.fail(
    f'--base={options.base} is not whole:', base.lacks, 'Pass the base it was trained on.'
  )
  if base.layout == 'diffusers':
    raise ValueError(
      f'--base={options.base} is in the layout {base.layout!r}; pass the DreamZero or Wan-AI directory.'
    )
  held = {
    part: {name: w for name, w in base.weights.get(part, {}).items() if name not in base.fresh}
    for part in PARTS
  }
  differing = [
    f'{part}: {name} is {list(w.shape)} here, {list(held[part][name].shape)} in the base'
    for part, of_part in parts.items()
    for name, w in of_part.items()
    if name in held[part] and held[part][name].shape != w.shape
  ]
  errors.fail(
    f'--base={options.base} does not fit --source={path}:',
    differing,
    'Pass the base it was trained on.',
  )
  return {part: held[part] | parts[part] for part in PARTS}


def _open_wan(path: epath.Path, options: Options) -> Foreign:
  said = jsonfile.read(path / 'config.json')
  parts: dict[str, dict[str, lazy.Weight]] = {
    'dit': dict(safetensors.open_weights(path, 'diffusion_pytorch_model'))
  }
  files = {part: _find_encoder(path, part, options) for part in ENCODERS}
  needs_image = any(name.startswith('img_emb.') for name in parts['dit'])
  lost = [part for part, file in files.items() if file is None and (part != 'image' or needs_image)]
  for part, file in files.items():
    if file is not None:
      parts[part] = {
        name: w for name, w in _open_any(file).items() if not name.startswith('textual.')
      }
  shapes = _shapes(parts)
  clip = (
    sizes.image_encoder(_heads(options), shapes['image'], 'bfloat16')
    if files['image']
    else cfg.ImageConfig()
  )
  model = sizes.model(
    said,
    shapes['dit'],
    33,
    sizes.video_tokenizer({}, shapes['tokenizer'], (), 'bfloat16'),
    sizes.text_encoder({}, shapes['text'], said.get('text_len'), 'bfloat16'),
    clip,
  )
  source = _with_fresh(Foreign('wan', path, model, _REFERENCE, {}, parts), options)
  return dataclasses.replace(
    source,
    tables={part: table for part, table in source.tables.items() if part not in lost},
    lacks=tuple(
      f'{ENCODERS[part]} is missing; it is published with Wan2.1-I2V-14B-480P (a Wan2.2 VAE with its '
      f'model): pass --{_FLAGS[part]}=FILE or DIRECTORY'
      for part in lost
    ),
  )


def _find_encoder(path: epath.Path, part: str, options: Options) -> epath.Path | None:
  place = options.encoders.get(part, path)
  if not place.exists():
    raise ValueError(f'{place}, given for the {part} encoder, does not exist.')
  if not place.is_dir():
    return place
  found = sorted(place.glob(ENCODERS[part]))
  if len(found) > 1:
    raise ValueError(
      f'{place} has several files {ENCODERS[part]}: {", ".join(p.name for p in found)}; name one.'
    )
  return found[0] if found else None


def _open_any(file: epath.Path) -> Mapping[str, lazy.Weight]:
  return safetensors.open_file(file) if file.suffix == '.safetensors' else pth.open_file(file)


def _open_diffusers(path: epath.Path, options: Options) -> Foreign:
  configs = diffusers_config.read_configs(path)
  parts: dict[str, dict[str, lazy.Weight]] = {}
  problems = []
  for part, (folder, stem) in diffusers_config.FOLDERS.items():
    if part == 'image' and configs.model.image.kind == 'none':
      continue
    try:
      parts[part] = dict(safetensors.open_weights(path / folder, stem))
    except ValueError as e:
      problems.append(str(e))
  errors.fail(f'{path} is not whole:', problems, 'Copy or download these files again.')
  if (path / diffusers_config.ACTION_FOLDER).exists():
    parts['dit'] |= safetensors.open_weights(
      path / diffusers_config.ACTION_FOLDER, diffusers_config.ACTION_STEM
    )
  parts['text'] = {text.TIED.get(name, name): w for name, w in parts['text'].items()}
  extra = {} if configs.mean_std_2C is None else {'tokenizer/mean_std_2C': configs.mean_std_2C}
  source = _with_fresh(
    Foreign(
      'diffusers',
      path,
      configs.model,
      configs.fields or _REFERENCE,
      {},
      parts,
      extra,
      robots=configs.robots,
    ),
    options,
  )
  return _complete_image(source) if 'image' in source.tables else source


def _complete_image(source: Foreign) -> Foreign:
  """`source` with CLIP's weights joined as in the table, and what Diffusers leaves out of CLIP."""
  c, weights = source.model.image, source.weights['image']
  held = c if 'visual_projection.weight' in weights else dataclasses.replace(c, out_dim=0)
  table = image.rows(held, 'diffusers')
  joined = diffusers_config.join_image(table, weights)
  dtype = next(iter(weights.values())).dtype
  completed = image.complete({'cls_embedding': np.zeros(0, dtype), 'projection': {}}, c)
  missing = {row.path for row in image.rows(c, 'wan')} - {row.path for row in table}
  made = {f'image/params/{path}': rows_lib.look_up(completed, path) for path in missing}
  return dataclasses.replace(
    source,
    tables={**source.tables, 'image': table},
    extra={**source.extra, **made},
    weights={**source.weights, 'image': joined},
  )


def _with_fresh(source: Foreign, options: Options) -> Foreign:
  """`source` with its tables, and with new weights for what was never published in its layout."""
  model, held = source.model, source.weights['dit']
  if not any(name in held for row in dit.action_rows(model) for name in row.names):
    model = dataclasses.replace(model, num_embodiments=options.num_embodiments)
  layout = 'diffusers' if source.layout == 'diffusers' else 'wan'
  without_image = {row.path for row in dit.wan_rows(dataclasses.replace(model, image_dim=0))}
  groups = [
    dit.action_rows(model),
    [row for row in dit.wan_rows(model, layout) if row.path not in without_image],
  ]
  dtype = (
    held['patch_embedding.weight'].dtype
    if 'patch_embedding.weight' in held
    else np.dtype(np.float32)
  )
  fresh = {
    name: Fresh(name, row, dtype)
    for group in groups
    if not any(name in held for row in group for name in row.names)
    for row in group
    for name in row.names
  }
  return dataclasses.replace(
    source,
    model=model,
    tables=tables(model, source.layout),
    fresh=tuple(fresh),
    weights={**source.weights, 'dit': {**held, **fresh}},
  )


class Fresh(NamedTuple):
  """A weight that was never trained, as the reference initialises it; the same for one name on
  every machine.

  Matrices are Xavier uniform, those of the action modules N(0, 0.02); norms are 1 and biases 0.
  """

  name: str
  row: rows_lib.Row
  dtype: np.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.row.torch_shape

  def read(self) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(self.name.encode()))
    leaf = self.row.path.rsplit('/', 1)[-1]
    if leaf == 'scale':
      return np.ones(self.shape, self.dtype)
    if leaf in ('b', 'bias'):
      return np.zeros(self.shape, self.dtype)
    if self.name.endswith('.W'):
      return (0.02 * rng.standard_normal(self.shape, np.float32)).astype(self.dtype)
    bound = np.float32((6 / sum(self.shape)) ** 0.5)
    return ((2 * rng.random(self.shape, np.float32) - 1) * bound).astype(self.dtype)


def _shapes(
  parts: Mapping[str, Mapping[str, lazy.Weight]],
) -> dict[str, dict[str, tuple[int, ...]]]:
  return {part: {name: tuple(w.shape) for name, w in parts.get(part, {}).items()} for part in PARTS}


def _heads(options: Options) -> dict[str, int]:
  return {'num_heads': options.image_heads} if options.image_heads else {}


def _with_heads(head: Mapping[str, object], options: Options) -> dict[str, object]:
  said = head.get('image_encoder_cfg') or {}
  return {**head, 'image_encoder_cfg': {**said, **_heads(options)}}
