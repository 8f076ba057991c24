"""`experiment_cfg/conf.yaml` and `experiment_cfg/metadata.json` of a DreamZero checkpoint, both
ways.

They say which cameras, states and actions a robot has and in which order, how images and numbers
are transformed, and the statistics; of relative action keys they are relative. Source: DreamZero
`GrootSimPolicy`, `DatasetMetadata`, `ComposedModalityTransform`.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from etils import epath

from wam_jax import config as cfg
from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop.dreamzero import robots as robots_lib
from wam_jax.interop.files import jsonfile

CONF = 'experiment_cfg/conf.yaml'
METADATA = 'experiment_cfg/metadata.json'
KINDS = ('state', 'action')

# Their classes.
_MODEL = 'groot.vla.model.dreamzero.base_vla.VLA'
_MODALITY = 'groot.vla.data.dataset.ModalityConfig'
_TRANSFORM = 'groot.vla.data.transform.'
_MODEL_TRANSFORM = 'groot.vla.model.dreamzero.transform.dreamzero_cotrain.DreamTransform'

# Their names of norms to ours, and back.
_NORMS = {'q99': 'q99_reference', 'min_max': 'min_max', 'mean_std': 'mean_std'}
_MODES = {ours: theirs for theirs, ours in _NORMS.items()} | {'q99': 'q99'}
# All of them: `DreamTransform` looks up every robot it has a prompt for.
_IDS = {'oxe_droid': 17, 'xdof': 22, 'gr1_unified': 24, 'agibot': 26, 'mecka_hands': 27, 'yam': 32}
# Frames, counted from now, that the server gives the policy; others give the newest.
_EVAL_FRAMES = {'agibot': [-3, -2, -1, 0]}
# Columns and rows of the published cameras.
_CAMERAS = {'oxe_droid': (320, 180)}
_REMEDY = (
  'Copy experiment_cfg/ from where the checkpoint was trained, or pass --nostatistics: the weights '
  'can then be trained further, but no robot can be controlled with them.'
)


def read_conf(directory: epath.Path) -> dict[str, Any]:
  """The content of conf.yaml with its `${a.b}` references resolved, or {} where there is none."""
  path = directory / CONF
  if not path.exists():
    return {}
  try:
    root = yaml.safe_load(path.read_text())
  except yaml.YAMLError as e:
    reason = ' '.join(str(e).split())[:300]
    raise ValueError(f'{path} is not YAML: {reason}. Copy or download it again.') from e
  return _resolve(root, root) if isinstance(root, dict) else {}


def _resolve(node: Any, root: Mapping[str, Any]) -> Any:
  """`node` with every reference that leads somewhere in `root` replaced by what is there."""
  if isinstance(node, dict):
    return {key: _resolve(value, root) for key, value in node.items()}
  if isinstance(node, list):
    return [_resolve(value, root) for value in node]
  if not (isinstance(node, str) and node.startswith('${') and node.endswith('}')):
    return node
  target: Any = root
  for key in node[2:-1].split('.'):
    if not isinstance(target, dict) or key not in target:
      # A reference to elsewhere, as to the environment; nothing that is read here has one.
      return node
    target = target[key]
  return _resolve(target, root)


def read_robots(directory: epath.Path, model: cfg.ModelConfig) -> list[robot_lib.Robot]:
  """Every robot of the checkpoint, as the record of `data/embodiments.py` that is the same, or as
  one of its own.

  Robots that the official server cannot serve either, without transforms or prompt, are left out.

  Raises:
    ValueError: files or statistics are missing, or say something that is not supported.
  """
  files = [directory / name for name in (CONF, METADATA)]
  absent = [f'{file} does not exist' for file in files if not file.exists()]
  errors.fail(f'{directory} has no statistics:', absent, _REMEDY)
  conf = read_conf(directory)
  metadata = jsonfile.read(directory / METADATA)
  transforms = conf.get('transforms', {})

  robots = []
  problems = []
  # Others were in the training mixture, but cannot be asked to act.
  served = [tag for tag in metadata if tag in robots_lib.TAGS and tag in transforms]
  for tag in served:
    try:
      robots.append(_read_robot(tag, metadata[tag], conf, model))
    except KeyError as e:
      problems.append(f'{tag}: {e.args[0]} is missing')
    except ValueError as e:
      problems.append(f'{tag}: {e}')
    except (TypeError, AttributeError, IndexError) as e:
      problems.append(f'{tag}: not of the form that the reference writes ({e})')
  if not served:
    problems.append(
      f'there are statistics of {", ".join(metadata) or "nobody"} and transforms of '
      f'{", ".join(transforms) or "nobody"}, but both of none of {", ".join(robots_lib.TAGS)}'
    )
  errors.fail(
    f'{directory / METADATA} and conf.yaml do not describe the robots:', problems, _REMEDY
  )
  return robots


def _read_robot(
  tag: str, content: Mapping[str, Any], conf: Mapping[str, Any], model: cfg.ModelConfig
) -> robot_lib.Robot:
  """One robot: `content` of metadata.json, and its share of conf.yaml."""
  transforms = conf['transforms'][tag]['transforms']
  # By class; of `StateActionTransform` there are two, of which only the modes count.
  by_name = {t['_target_'].removeprefix(_TRANSFORM): t for t in transforms}
  modes = {}
  for transform in transforms:
    modes |= transform.get('normalization_modes', {})
  order = by_name['ConcatTransform']
  modalities = content['modalities']
  _check_norms(modes, conf)

  views = tuple(key.removeprefix('video.') for key in order['video_concat_order'])
  # The cameras of the published datasets are recorded at the rate of the actions.
  hz = (conf.get('fps') or {}).get(tag) or modalities['video'][views[0]]['fps']
  resize = by_name['VideoResize']
  state = _read_keys('state', order, modalities, modes)
  action = _read_keys('action', order, modalities, modes)
  relative = conf.get('relative_action_keys') if conf.get('relative_action') else ()
  description = robots_lib.Description(
    tag=tag,
    views=views,
    size=(resize['height'], resize['width']),
    state=state,
    action=action,
    relative=frozenset(relative or ()),
    hz=float(hz),
    steps=model.actions_per_chunk,
    language=_read_language(tag, conf),
  )
  record = robots_lib.find_shipped(description.make_record(model.camera_frames_per_chunk))
  statistics = normalize.Statistics(
    state=_read_quantiles(content['statistics'], 'state', state),
    action=_read_quantiles(content['statistics'], 'action', action),
    steps=0,  # The files do not say how many they were computed from.
  )
  crop = by_name.get('VideoCrop', {}).get('scale')
  if crop not in (None, images.CROP):
    raise ValueError(f'VideoCrop.scale={crop} is not supported, only {images.CROP}')
  return robot_lib.Robot(id=0, record=record, statistics=statistics, center_crop=crop is not None)


def _check_norms(modes: Mapping[str, str], conf: Mapping[str, Any]) -> None:
  unknown = sorted(f'{key}={mode}' for key, mode in modes.items() if mode not in _NORMS)
  if unknown:
    raise ValueError(
      f'normalization_modes {", ".join(unknown)} are not supported, only {", ".join(_NORMS)}'
    )
  if conf.get('relative_action_per_horizon'):
    raise ValueError('per-horizon statistics are not supported')


def _read_keys(
  kind: str, order: Mapping[str, Any], modalities: Mapping[str, Any], modes: Mapping[str, str]
) -> tuple[robots_lib.Key, ...]:
  """The arrays of the state or the action, in the order of their vector."""
  keys = []
  for key in order[f'{kind}_concat_order'] or []:
    name = key.removeprefix(f'{kind}.')
    width = math.prod(modalities[kind][name]['shape'])
    norm = _NORMS.get(modes.get(key), 'none')
    keys.append(robots_lib.Key(name, width, norm))
  return tuple(keys)


def _read_language(tag: str, conf: Mapping[str, Any]) -> tuple[str, ...]:
  """The keys of the instruction."""
  modality = conf.get('modality_configs', {}).get(tag, {}).get('language') or {}
  return tuple(modality.get('modality_keys', [])) or ('language_instruction',)


def _read_quantiles(
  statistics: Mapping[str, Any], kind: str, keys: tuple[robots_lib.Key, ...]
) -> normalize.Quantiles:
  """The statistics of all keys, one after the other as in the vector."""
  held = statistics.get(kind, {})
  problems = []
  for key in keys:
    numbers = held.get(key.name, {})
    wrong = [name for name in normalize.ARRAYS if np.shape(numbers.get(name)) != (key.width,)]
    problems += [f'statistics.{kind}.{key.name}.{name}' for name in wrong]
  if problems:
    raise ValueError(f'{", ".join(problems[:10])} must be there, with one number per dimension')

  arrays = {}
  for name in normalize.ARRAYS:
    pieces = [np.float32(held[key.name][name]) for key in keys]
    arrays[name] = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
  norms: list[str] = []
  for key in keys:
    norms += [key.norm] * key.width
  return normalize.Quantiles(**arrays, norms=tuple(norms))


def write(
  directory: pathlib.Path,
  robots: Mapping[str, robot_lib.Robot],
  model: cfg.ModelConfig,
  camera: tuple[int, int] | None,
) -> None:
  """conf.yaml and metadata.json for `robots`, by tag, with everything resolved.

  Args:
    directory: the checkpoint.
    robots: the robots by the reference's tag, with statistics.
    model: the model that controls them.
    camera: columns and rows of the robots' cameras; None for the published ones.
  Raises:
    ValueError: a robot cannot be described to the reference.
  """
  described = {tag: robots_lib.describe(tag, robot.record, model) for tag, robot in robots.items()}
  relative = _join_relative(described)
  # Source: DreamZero `VideoToTensor`, which asserts it.
  lost = [tag for tag in robots if camera is None and tag not in _CAMERAS]
  if lost:
    raise ValueError(
      'The official server checks the size of camera images, which is not known for '
      f'{", ".join(lost)}; pass --camera_resolution=COLUMNSxROWS.'
    )

  conf: dict[str, Any] = {
    'model': {'_target_': _MODEL},
    'eval_bf16': model.dtype == 'bfloat16',
    'save_lora_only': False,
    'relative_action': bool(relative),
    'relative_action_keys': relative,
    'relative_action_per_horizon': False,
    'fps': {},
    'modality_configs': {},
    'transforms': {},
  }
  metadata = {}
  for tag, description in described.items():
    robot = robots[tag]
    conf['fps'][tag] = description.hz
    conf['modality_configs'][tag] = _make_modalities(description, model)
    conf['transforms'][tag] = _make_transforms(description, model, robot.center_crop)
    metadata[tag] = _make_metadata(description, robot.statistics, camera or _CAMERAS[tag])

  (directory / 'experiment_cfg').mkdir()
  (directory / CONF).write_text(
    yaml.dump(conf, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=120)
  )
  jsonfile.write(directory / METADATA, metadata)


class _Plain(yaml.SafeDumper):
  """Writes a list that is used twice twice."""

  def ignore_aliases(self, data: Any) -> bool:
    return True


def _join_relative(described: Mapping[str, robots_lib.Description]) -> list[str]:
  """The relative action keys of all robots.

  Raises:
    ValueError: one is relative for some robots only; conf.yaml has one list for all.
  """
  relative: set[str] = set()
  for description in described.values():
    relative |= description.relative
  mixed = []
  for description in described.values():
    absolute = [key.name for key in description.action if key.name not in description.relative]
    mixed += [f'{name} of {description.tag}' for name in absolute if name in relative]
  errors.fail(
    'The reference makes an action key relative for all robots or for none:',
    mixed,
    'These are absolute, but relative for another robot. Export one with --embodiment=NAME.',
  )
  return sorted(relative)


def _list_keys(description: robots_lib.Description, kind: str) -> list[str]:
  """The names of the arrays of one kind, as conf.yaml has them."""
  return [f'{kind}.{key.name}' for key in description.get_keys(kind)]


def _list_videos(description: robots_lib.Description) -> list[str]:
  return [f'video.{name}' for name in description.views]


def _make_modalities(description: robots_lib.Description, model: cfg.ModelConfig) -> dict[str, Any]:
  """Which steps of which arrays a sample has, counted from its own.

  Source: `modality_configs` of DreamZero `base_48_wan_fine_aug_relative.yaml`.
  """
  steps = model.actions_per_chunk
  return {
    'video': {
      '_target_': _MODALITY,
      # The frame before the first action and the one after each.
      'delta_indices': list(range(steps + 1)),
      'eval_delta_indices': _EVAL_FRAMES.get(description.tag, [0]),
      'modality_keys': _list_videos(description),
    },
    'state': {
      '_target_': _MODALITY,
      'delta_indices': [0],
      'modality_keys': _list_keys(description, 'state'),
    },
    'action': {
      '_target_': _MODALITY,
      'delta_indices': list(range(steps)),
      'modality_keys': _list_keys(description, 'action'),
    },
    'language': {
      '_target_': _MODALITY,
      'delta_indices': [0],
      'modality_keys': list(description.language),
    },
  }


def _make_step(name: str, keys: list[str], **settings: Any) -> dict[str, Any]:
  """One step of a transform."""
  return {'_target_': f'{_TRANSFORM}{name}', 'apply_to': keys, **settings}


def _make_transforms(
  description: robots_lib.Description, model: cfg.ModelConfig, center_crop: bool
) -> dict[str, Any]:
  """What happens to a sample before the model sees it: images, numbers, their order, the prompt.

  Source: `transforms` of DreamZero `base_48_wan_fine_aug_relative.yaml`.
  """
  videos = _list_videos(description)
  rows, columns = description.size
  steps = [_make_step('VideoToTensor', videos)]
  if center_crop:
    steps.append(_make_step('VideoCrop', videos, scale=images.CROP))
  steps += [
    _make_step('VideoResize', videos, height=rows, width=columns, interpolation='linear'),
    # For training alone; the strengths are the published ones.
    _make_step('VideoColorJitter', videos, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
    _make_step('VideoToNumpy', videos),
  ]
  for kind in KINDS:
    modes = {}
    for key in description.get_keys(kind):
      if key.norm != 'none':
        modes[f'{kind}.{key.name}'] = _MODES[key.norm]
    names = _list_keys(description, kind)
    steps += [
      _make_step('StateActionToTensor', names),
      _make_step('StateActionTransform', names, normalization_modes=modes),
    ]
  steps += [
    {
      '_target_': f'{_TRANSFORM}ConcatTransform',
      'video_concat_order': videos,
      'state_concat_order': _list_keys(description, 'state'),
      'action_concat_order': _list_keys(description, 'action'),
    },
    {
      '_target_': _MODEL_TRANSFORM,
      'default_instruction': prompts.DEFAULT_INSTRUCTION,
      'language_dropout_prob': 0.0,
      'always_use_default_instruction': False,
      'max_state_dim': model.proprio_dim,
      'max_action_dim': model.action_dim,
      'max_length': model.text.length,
      'state_horizon': 1,
      'action_horizon': model.actions_per_chunk,
      'num_views': len(description.views),
      'embodiment_tag_mapping': _IDS,
      'tokenizer_path': 'google/umt5-xxl',
    },
  ]
  return {'_target_': f'{_TRANSFORM}ComposedModalityTransform', 'transforms': steps}


def _make_metadata(
  description: robots_lib.Description,
  statistics: normalize.Statistics,
  camera: tuple[int, int],
) -> dict[str, Any]:
  """One robot in metadata.json. Source: DreamZero `DatasetMetadata`; `camera` is columns and
  rows.
  """
  modalities: dict[str, Any] = {'video': {}}
  for name in description.views:
    modalities['video'][name] = {
      'resolution': list(camera),
      'channels': 3,
      'fps': description.hz,
    }
  numbers: dict[str, Any] = {}
  for kind in KINDS:
    modalities[kind] = {}
    for key in description.get_keys(kind):
      modalities[kind][key.name] = {
        'absolute': True,
        'rotation_type': None,
        'shape': [key.width],
        'continuous': True,
      }
    quantiles = {'state': statistics.state, 'action': statistics.action}[kind]
    numbers[kind] = _split_quantiles(quantiles, description.get_keys(kind))
  return {
    'statistics': numbers,
    'modalities': modalities,
    'embodiment_tag': description.tag,
  }


def _split_quantiles(
  quantiles: normalize.Quantiles, keys: tuple[robots_lib.Key, ...]
) -> dict[str, dict[str, list[float]]]:
  """The statistics by key; inverse of `_read_quantiles`."""
  arrays = _fill_arrays(quantiles)
  numbers = {}
  start = 0
  for key in keys:
    stop = start + key.width
    numbers[key.name] = {name: x[start:stop].tolist() for name, x in arrays.items()}
    start = stop
  return numbers


def _fill_arrays(quantiles: normalize.Quantiles) -> dict[str, np.ndarray]:
  """All six arrays; NaN where nobody computed them. Quantiles are widened where we floor a range
  and they do not.
  """
  unknown = np.full(quantiles.q01.shape, np.nan, np.float32)
  arrays = {}
  for name in normalize.ARRAYS:
    array = getattr(quantiles, name)
    arrays[name] = unknown if array is None else array

  # They divide by the range as it is.
  norms = quantiles.norms or ('q99',) * unknown.size
  is_ours = np.asarray([norm == 'q99' for norm in norms], bool)
  is_floored = is_ours & quantiles.is_flat
  low = quantiles.middle - quantiles.half_range
  high = quantiles.middle + quantiles.half_range
  arrays['q01'] = np.where(is_floored, low, arrays['q01'])
  arrays['q99'] = np.where(is_floored, high, arrays['q99'])
  return arrays
