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

import yaml
from etils import epath

from wam_jax import config as cfg
from wam_jax import pointers
from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop.dreamzero import quantiles as quantiles_lib
from wam_jax.interop.dreamzero import robots as robots_lib
from wam_jax.interop.dreamzero import serving
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
# Columns and rows of the published cameras, and these.
_CAMERAS = {'oxe_droid': (320, 180)}
_VIEWS = {'oxe_droid': ('exterior_image_1_left', 'exterior_image_2_left', 'wrist_image_left')}
_REMEDY = (
  'Copy experiment_cfg/ from where the checkpoint was trained, or pass --nostatistics: the weights '
  'can then be trained further, but no robot can be controlled with them.'
)


def read_conf(directory: epath.Path) -> dict[str, Any]:
  """The content of conf.yaml with its `${a.b}` references resolved, or {} where there is none."""
  path = directory / CONF
  if not path.exists():
    return {}
  pointers.check(path)
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
    state=quantiles_lib.read(content['statistics'], 'state', state),
    action=quantiles_lib.read(content['statistics'], 'action', action),
    steps=0,  # The files do not say how many they were computed from.
  )
  _check_transforms(by_name, model)
  is_cropped = 'VideoCrop' in by_name
  return robot_lib.Robot(id=0, record=record, statistics=statistics, center_crop=is_cropped)


def _check_transforms(by_name: Mapping[str, Mapping[str, Any]], model: cfg.ModelConfig) -> None:
  """Raises ValueError for settings of images and prompts with no counterpart here."""
  crop = by_name.get('VideoCrop', {}).get('scale', images.CROP)
  # The last one is not among the transforms of images and numbers.
  prompt = by_name.get(_MODEL_TRANSFORM, {})
  length = model.text.length
  found = {
    'VideoCrop.scale': (crop, images.CROP),
    'VideoResize.interpolation': (by_name['VideoResize'].get('interpolation', 'linear'), 'linear'),
    'VideoResize.antialias': (by_name['VideoResize'].get('antialias', True), True),
    'DreamTransform.always_use_default_instruction': (
      prompt.get('always_use_default_instruction', False),
      False,
    ),
    'DreamTransform.max_length': (prompt.get('max_length', length), length),
  }
  wrong = []
  for key, (said, only) in found.items():
    if said != only:
      wrong.append(f'{key}={said} is not supported, only {only}')
  if wrong:
    raise ValueError('; '.join(wrong))


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


def write(
  directory: pathlib.Path,
  robots: Mapping[str, robot_lib.Robot],
  model: cfg.ModelConfig,
  where: serving.Serving,
) -> list[str]:
  """conf.yaml and metadata.json for `robots`, by tag, with everything resolved.

  Args:
    directory: the checkpoint.
    robots: the robots by the reference's tag, with statistics.
    model: the model that controls them.
    where: it will be served.
  Returns:
    what to know of the files, a line each.
  Raises:
    ValueError: a robot cannot be described to the reference.
  """
  described = {}
  for tag, robot in robots.items():
    described[tag] = robots_lib.describe(tag, robot.record, model, where.names)
  relative = _join_relative(described)
  cameras = {tag: where.camera or _find_camera(each) for tag, each in described.items()}
  # Source: DreamZero `VideoToTensor`, which asserts it.
  lost = [tag for tag, camera in cameras.items() if camera is None]
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
    conf['transforms'][tag] = _make_transforms(
      description, model, robot.center_crop, where.vocabulary
    )
    metadata[tag] = _make_metadata(description, robot.statistics, cameras[tag])

  (directory / 'experiment_cfg').mkdir()
  (directory / CONF).write_text(
    yaml.dump(conf, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=120)
  )
  jsonfile.write(directory / METADATA, metadata)

  notes = []
  for tag, description in described.items():
    notes.append(f'keys of {tag}: {", ".join(description.list_keys(robots[tag].record))}')
    notes += quantiles_lib.list_unknown(tag, robots[tag].statistics)
  return notes


def _find_camera(description: robots_lib.Description) -> tuple[int, int] | None:
  """Columns and rows of the cameras that the published dataset of a tag has; None for others."""
  is_published = description.views == _VIEWS.get(description.tag)
  return _CAMERAS[description.tag] if is_published else None


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
  description: robots_lib.Description, model: cfg.ModelConfig, center_crop: bool, vocabulary: str
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
      'tokenizer_path': vocabulary,
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
    numbers[kind] = quantiles_lib.write(quantiles, description.get_keys(kind))
  return {
    'statistics': numbers,
    'modalities': modalities,
    'embodiment_tag': description.tag,
  }
