"""`experiment_cfg/conf.yaml` and `experiment_cfg/metadata.json` of a DreamZero checkpoint: its
robots, both ways.

They say which cameras, states and actions there are and in which order, how images and numbers are
transformed, and the statistics; of relative action keys they are relative. Source: DreamZero
`GrootSimPolicy`, `DatasetMetadata`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from etils import epath

from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import robot as robot_lib
from wam_jax.interop import errors
from wam_jax.interop.files import jsonfile

TAGS = tuple(prompts.TEMPLATES)  # Robots that the reference has a prompt for.
CONF, METADATA = 'experiment_cfg/conf.yaml', 'experiment_cfg/metadata.json'

_MODALITY, _TRANSFORM = 'groot.vla.data.dataset.ModalityConfig', 'groot.vla.data.transform.'
_MODEL_TRANSFORM = 'groot.vla.model.dreamzero.transform.dreamzero_cotrain.DreamTransform'
_MODEL = 'groot.vla.model.dreamzero.base_vla.VLA'

_NORMS = {'q99': 'q99_reference', 'min_max': 'min_max', 'mean_std': 'mean_std'}  # Theirs to ours.
_MODES = {ours: theirs for theirs, ours in _NORMS.items()} | {'q99': 'q99'}
# All of them: the official transform looks up every robot it has a prompt for.
_IDS = {'oxe_droid': 17, 'xdof': 22, 'gr1_unified': 24, 'agibot': 26, 'mecka_hands': 27, 'yam': 32}
_LANGUAGE = {
  'oxe_droid': [f'annotation.language.language_instruction{n}' for n in ('', '_2', '_3')],
  'agibot': ['annotation.language.action_text'],
  'yam': ['annotation.task'],
}
_EVAL_FRAMES = {'agibot': [-3, -2, -1, 0]}
_CAMERAS = {'oxe_droid': (320, 180)}  # Columns and rows of the published cameras.
_TAGS = {
  'droid': 'oxe_droid',
  'droid_wan22': 'oxe_droid',
  'human': 'mecka_hands',
}  # Our record to their tag.
_STRIDE = 3  # Control steps between two camera frames, of every robot.


def read_conf(directory: epath.Path) -> dict[str, Any]:
  """The content of conf.yaml with its `${a.b}` references resolved, or {} where there is none."""
  path = directory / CONF
  if not path.exists():
    return {}
  try:
    root = yaml.safe_load(path.read_text())
  except yaml.YAMLError as e:
    raise ValueError(
      f'{path} is not YAML: {" ".join(str(e).split())[:300]}. Copy or download it again.'
    ) from e
  return _resolve(root, root) if isinstance(root, dict) else {}


def read_robots(directory: epath.Path, model: cfg.ModelConfig) -> list[robot_lib.Robot]:
  """Every robot of the checkpoint, as the record of `data/embodiments.py` that is the same, or as
  one of its own.

  Robots that the official server cannot serve either, without transforms or prompt, are left out.

  Raises:
    ValueError: files or statistics are missing, or say something that is not supported.
  """
  remedy = (
    'Copy experiment_cfg/ from where the checkpoint was trained, or pass --nostatistics: the weights can then '
    'be trained further, but no robot can be controlled with them.'
  )
  absent = [
    f'{directory / name} does not exist'
    for name in (CONF, METADATA)
    if not (directory / name).exists()
  ]
  errors.fail(f'{directory} has no statistics:', absent, remedy)
  conf, metadata = read_conf(directory), jsonfile.read(directory / METADATA)
  known, problems = [], []
  served = [tag for tag in metadata if tag in TAGS and tag in conf.get('transforms', {})]
  for tag in served:
    try:
      known.append(_read_robot(tag, metadata[tag], conf, model))
    except KeyError as e:
      problems.append(f'{tag}: {e.args[0]} is missing')
    except ValueError as e:
      problems.append(f'{tag}: {e}')
    except (TypeError, AttributeError, IndexError) as e:
      problems.append(f'{tag}: not of the form that the reference writes ({e})')
  if not served:
    problems.append(
      f'there are statistics of {", ".join(metadata) or "nobody"} and transforms of '
      f'{", ".join(conf.get("transforms", {})) or "nobody"}, but both of none of {", ".join(TAGS)}'
    )
  errors.fail(f'{directory / METADATA} and conf.yaml do not describe the robots:', problems, remedy)
  return known


@dataclasses.dataclass(frozen=True)
class _Robot:
  """What the two files say about one robot; names without 'video.', 'state.', 'action.'.

  Attributes:
    views: names, in the order of the composite. size: rows and columns of each there.
    state, action: (name, width, norm) in order. relative: the action names that count from the
      state.
    hz: of the actions. steps: of a chunk.
  """

  tag: str
  views: tuple[str, ...]
  size: tuple[int, int]
  state: tuple[tuple[str, int, str], ...]
  action: tuple[tuple[str, int, str], ...]
  relative: frozenset[str]
  hz: float
  steps: int
  language: tuple[str, ...]

  def record(self, camera_frames: int) -> embodiments.Embodiment:
    """A record that says the same."""
    views, composite = _tile(self.tag, self.views, self.size)
    widths = {name: width for name, width, _ in self.state}
    lost = sorted(
      name for name, width, _ in self.action if name in self.relative and widths.get(name) != width
    )
    if lost:
      raise ValueError(
        f'relative_action_keys {lost} have no state of the same name and width to count from'
      )
    stride = _stride(self.steps, camera_frames)
    return embodiments.Embodiment(
      name=self.tag,
      views=views,
      composite=composite,
      resize='bilinear',
      prompt=prompts.TEMPLATES[self.tag],
      state=tuple(
        embodiments.Slice(name, 0, width, 'raw', norm=norm) for name, width, norm in self.state
      ),
      action=tuple(
        embodiments.Slice(
          f'action/{name}',
          0,
          width,
          'raw',
          norm=norm,
          relative_to=f'{name}:0:{width}' if name in self.relative else '',
        )
        for name, width, norm in self.action
      ),
      control_hz=self.hz,
      video_fps=self.hz / stride,
      chunk_s=self.steps / self.hz,
      language=tuple(key.rsplit('.', 1)[-1] for key in self.language),
    )


def _read_robot(
  tag: str, content: Mapping[str, Any], conf: Mapping[str, Any], model: cfg.ModelConfig
) -> robot_lib.Robot:
  steps = {t['_target_'].removeprefix(_TRANSFORM): t for t in conf['transforms'][tag]['transforms']}
  order, modalities = steps['ConcatTransform'], content['modalities']
  modes = {
    key: mode
    for t in conf['transforms'][tag]['transforms']
    for key, mode in t.get('normalization_modes', {}).items()
  }
  unknown = sorted(f'{key}={mode}' for key, mode in modes.items() if mode not in _NORMS)
  if unknown or conf.get('relative_action_per_horizon'):
    raise ValueError(
      'per-horizon statistics are not supported'
      if not unknown
      else f'normalization_modes {", ".join(unknown)} are not supported, only {", ".join(_NORMS)}'
    )

  def parts(kind):
    keys = order[f'{kind}_concat_order'] or []
    return tuple(
      (
        key.removeprefix(f'{kind}.'),
        math.prod(modalities[kind][key.removeprefix(f'{kind}.')]['shape']),
        _NORMS.get(modes.get(key), 'none'),
      )
      for key in keys
    )

  views = tuple(key.removeprefix('video.') for key in order['video_concat_order'])
  hz = (conf.get('fps') or {}).get(tag) or modalities['video'][views[0]]['fps']
  language = (conf.get('modality_configs', {}).get(tag, {}).get('language') or {}).get(
    'modality_keys', []
  )
  robot = _Robot(
    tag,
    views,
    (steps['VideoResize']['height'], steps['VideoResize']['width']),
    parts('state'),
    parts('action'),
    frozenset(conf.get('relative_action_keys') or ())
    if conf.get('relative_action')
    else frozenset(),
    float(hz),
    model.actions_per_chunk,
    tuple(language) or ('language_instruction',),
  )
  record = _shipped(robot.record(model.camera_frames_per_chunk))
  statistics = normalize.Statistics(
    *(
      _read_quantiles(content['statistics'], kind, getattr(robot, kind))
      for kind in ('state', 'action')
    ),
    steps=0,
  )
  crop = steps.get('VideoCrop', {}).get('scale')
  if crop not in (None, images.CROP):
    raise ValueError(f'VideoCrop.scale={crop} is not supported, only {images.CROP}')
  return robot_lib.Robot(0, record, statistics, center_crop=crop is not None)


def _read_quantiles(
  statistics: Mapping[str, Any], kind: str, parts: Sequence[tuple[str, int, str]]
) -> normalize.Quantiles:
  problems = [
    f'statistics.{kind}.{name}.{key}'
    for name, width, _ in parts
    for key in normalize.ARRAYS
    if np.shape(statistics.get(kind, {}).get(name, {}).get(key)) != (width,)
  ]
  if problems:
    raise ValueError(f'{", ".join(problems[:10])} must be there, with one number per dimension')
  arrays = {
    key: np.concatenate(
      [np.float32(statistics[kind][name][key]) for name, _, _ in parts] or [np.zeros(0)]
    )
    for key in normalize.ARRAYS
  }
  return normalize.Quantiles(
    **{key: np.asarray(x, np.float32) for key, x in arrays.items()},
    norms=tuple(norm for _, width, norm in parts for _ in range(width)),
  )


def _shipped(record: embodiments.Embodiment) -> embodiments.Embodiment:
  """The record of `data/embodiments.py` that sees and does the same, with this one's norms; else
  `record`.
  """
  for ours in embodiments.EMBODIMENTS.values():
    if _essence(ours) == _essence(record):
      norms = {
        part: tuple(
          dataclasses.replace(mine, norm=theirs.norm)
          for mine, theirs in zip(getattr(ours, part), getattr(record, part))
        )
        for part in ('state', 'action')
      }
      return dataclasses.replace(ours, prompt=record.prompt, **norms)
  return record


def _essence(record: embodiments.Embodiment) -> Any:
  """What two records of one robot have in common, whatever their datasets call the arrays."""
  slices = [
    [(_name(s.key), s.width, bool(s.relative_to), s.offset, s.scale, s.clip) for s in part]
    for part in (record.state, record.action)
  ]
  views = [dataclasses.replace(v, key=_name(v.key)) for v in record.views]
  return (
    slices,
    views,
    record.composite,
    record.control_hz,
    record.video_fps,
    record.chunk_s,
    record.resize,
  )


def _name(key: str) -> str:
  return key.rsplit('/', 1)[-1]


def _stride(steps: int, camera_frames: int) -> int:
  """Control steps between camera frames: such that a chunk of both lasts as long, else the
  reference's constant.
  """
  if steps >= camera_frames and steps % camera_frames == 0:
    return steps // camera_frames
  return _STRIDE if steps % _STRIDE == 0 else 1


def _tile(
  tag: str, names: Sequence[str], size: tuple[int, int]
) -> tuple[tuple[embodiments.View, ...], tuple[int, int]]:
  """The views of the reference's composite and its size. Source: DreamZero
  `DreamTransform._prepare_video`.
  """
  rows, columns = size
  if len(names) == 1:
    return (embodiments.View(names[0], 0, 0, rows, columns),), size
  if tag == 'oxe_droid' and len(names) >= 3:
    places = [(rows, 0, columns, 1), (rows, columns, columns, 1), (0, 0, 2 * columns, 2)]
  else:
    places = [(0, 0, columns, 1), (rows, 0, columns, 1), (0, columns, columns, 1)]
  return tuple(
    embodiments.View(name, row, column, rows, width, repeat)
    for name, (row, column, width, repeat) in zip(names, places)
  ), (2 * rows, 2 * columns)


def _resolve(node: Any, root: Any) -> Any:
  if isinstance(node, dict):
    return {key: _resolve(value, root) for key, value in node.items()}
  if isinstance(node, list):
    return [_resolve(value, root) for value in node]
  if isinstance(node, str) and node.startswith('${') and node.endswith('}'):
    target = root
    for key in node[2:-1].split('.'):
      if not isinstance(target, dict) or key not in target:
        return node
      target = target[key]
    return _resolve(target, root)
  return node


def find_tag(name: str) -> str:
  """The reference's tag of a record; itself where there is none."""
  return _TAGS.get(name, name.removesuffix('_reference'))


def check_tags(robots: Mapping[str, robot_lib.Robot]) -> None:
  """Raises ValueError unless the official server has a prompt for each of the robots by tag."""
  problems = []
  for tag, robot in robots.items():
    if tag not in TAGS:
      problems.append(f'{robot.record.name}: its tag would be {tag!r}')
  errors.fail(
    'The official server has no prompt for these robots:',
    problems,
    f'Pass --embodiment=NAME --tag=TAG to export one under another tag: {", ".join(TAGS)}.',
  )


def write(
  directory: Any,
  robots: Mapping[str, robot_lib.Robot],
  model: cfg.ModelConfig,
  camera: tuple[int, int] | None,
) -> None:
  """conf.yaml and metadata.json for `robots`, by tag, with everything resolved.

  Args:
    camera: columns and rows of the robot's cameras; None for the published ones.
  Raises:
    ValueError: a robot cannot be described to the reference.
  """
  described = {tag: _describe(tag, known, model) for tag, known in robots.items()}
  relative = set().union(*(robot.relative for robot in described.values()))
  mixed = [
    f'{name} of {robot.tag}'
    for robot in described.values()
    for name, _, _ in robot.action
    if name in relative and name not in robot.relative
  ]
  errors.fail(
    'The reference makes an action key relative for all robots or for none:',
    mixed,
    'These are absolute, but relative for another robot. Export one with --embodiment=NAME.',
  )
  lost = [tag for tag in robots if camera is None and tag not in _CAMERAS]
  if lost:
    raise ValueError(
      f'The official server checks the size of camera images, which is not known for {", ".join(lost)}; '
      'pass --camera_resolution=COLUMNSxROWS.'
    )
  conf = {
    'model': {'_target_': _MODEL},
    'eval_bf16': model.dtype == 'bfloat16',
    'save_lora_only': False,
    'relative_action': bool(relative),
    'relative_action_keys': sorted(relative),
    'relative_action_per_horizon': False,
    'fps': {tag: r.hz for tag, r in described.items()},
    'modality_configs': {tag: _modalities(r, model) for tag, r in described.items()},
    'transforms': {
      tag: _transforms(r, model, robots[tag].center_crop) for tag, r in described.items()
    },
  }
  metadata = {
    tag: _metadata(r, robots[tag].statistics, camera or _CAMERAS[tag])
    for tag, r in described.items()
  }
  (directory / 'experiment_cfg').mkdir()
  (directory / CONF).write_text(
    yaml.dump(conf, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=120)
  )
  jsonfile.write(directory / METADATA, metadata)


class _Plain(yaml.SafeDumper):
  """Writes a list that is used twice twice."""

  def ignore_aliases(self, data: Any) -> bool:
    return True


def _describe(tag: str, known: robot_lib.Robot, model: cfg.ModelConfig) -> _Robot:
  """Inverse of `_Robot.record`, checked."""
  record = known.record
  parts = {
    kind: tuple((_name(s.key), s.width, s.norm) for s in getattr(record, kind))
    for kind in ('state', 'action')
  }
  several = 2 if len(record.views) > 1 else 1
  robot = _Robot(
    tag,
    tuple(_name(v.key) for v in record.views),
    (record.composite[0] // several, record.composite[1] // several),
    **parts,
    relative=frozenset(_name(s.key) for s in record.action if s.relative_to),
    hz=record.control_hz,
    steps=record.steps_per_chunk,
    language=tuple(_LANGUAGE.get(tag, [f'annotation.{_name(key)}' for key in record.language])),
  )
  double = [
    f'{kind} {name!r}'
    for kind, of_kind in parts.items()
    for name in {n for n, _, _ in of_kind}
    if sum(n == name for n, _, _ in of_kind) > 1
  ]
  if double:
    raise ValueError(
      f'{record.name!r} has several slices of {", ".join(double)}; the reference names each once.'
    )
  want, have = _essence(robot.record(model.camera_frames_per_chunk)), _essence(record)
  differing = [
    f'{part}: {_plain(b)} here, {_plain(a)} there'
    for part, a, b in zip(('slices', 'views', 'composite'), want, have)
    if a != b
  ]
  errors.fail(
    f'The reference cannot express embodiment {record.name!r} under the tag {tag!r}:',
    differing,
    'It knows a fixed composite and plain arrays; only such robots can be exported to it.',
  )
  return robot


def _plain(part: Any) -> str:
  return str(part)[:200]


def _modalities(robot: _Robot, model: cfg.ModelConfig) -> dict[str, Any]:
  def of(kind, keys, indices, **more):
    return {'_target_': _MODALITY, 'delta_indices': indices, **more, 'modality_keys': keys}

  steps = model.actions_per_chunk
  return {
    'video': of(
      'video',
      [f'video.{name}' for name in robot.views],
      list(range(steps + 1)),
      eval_delta_indices=_EVAL_FRAMES.get(robot.tag, [0]),
    ),
    'state': of('state', [f'state.{name}' for name, _, _ in robot.state], [0]),
    'action': of('action', [f'action.{name}' for name, _, _ in robot.action], list(range(steps))),
    'language': of('language', list(robot.language), [0]),
  }


def _transforms(robot: _Robot, model: cfg.ModelConfig, center_crop: bool) -> dict[str, Any]:
  videos = [f'video.{name}' for name in robot.views]
  step = lambda name, keys, **more: {'_target_': f'{_TRANSFORM}{name}', 'apply_to': keys, **more}
  steps = [
    step('VideoToTensor', videos),
    *([step('VideoCrop', videos, scale=images.CROP)] if center_crop else []),
    step('VideoResize', videos, height=robot.size[0], width=robot.size[1], interpolation='linear'),
    step('VideoColorJitter', videos, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
    step('VideoToNumpy', videos),
  ]
  keys = {}
  for kind in ('state', 'action'):
    keys[kind] = [f'{kind}.{name}' for name, _, _ in getattr(robot, kind)]
    modes = {
      f'{kind}.{name}': _MODES[norm] for name, _, norm in getattr(robot, kind) if norm != 'none'
    }
    steps += [
      step('StateActionToTensor', keys[kind]),
      step('StateActionTransform', keys[kind], normalization_modes=modes),
    ]
  steps += [
    {
      '_target_': f'{_TRANSFORM}ConcatTransform',
      'video_concat_order': videos,
      'state_concat_order': keys['state'],
      'action_concat_order': keys['action'],
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
      'num_views': len(robot.views),
      'embodiment_tag_mapping': _IDS,
      'tokenizer_path': 'google/umt5-xxl',
    },
  ]
  return {'_target_': f'{_TRANSFORM}ComposedModalityTransform', 'transforms': steps}


def _metadata(
  robot: _Robot, statistics: normalize.Statistics, camera: tuple[int, int]
) -> dict[str, Any]:
  def of(kind):
    ends = np.cumsum([width for _, width, _ in getattr(robot, kind)]).tolist()
    return {
      name: slice(end - width, end) for (name, width, _), end in zip(getattr(robot, kind), ends)
    }

  arrays = {kind: _arrays(getattr(statistics, kind)) for kind in ('state', 'action')}
  return {
    'statistics': {
      kind: {
        name: {key: x[part].tolist() for key, x in arrays[kind].items()}
        for name, part in of(kind).items()
      }
      for kind in ('state', 'action')
    },
    'modalities': {
      'video': {
        name: {'resolution': list(camera), 'channels': 3, 'fps': robot.hz} for name in robot.views
      }
    }
    | {
      kind: {
        name: {'absolute': True, 'rotation_type': None, 'shape': [width], 'continuous': True}
        for name, width, _ in getattr(robot, kind)
      }
      for kind in ('state', 'action')
    },
    'embodiment_tag': robot.tag,
  }


def _arrays(quantiles: normalize.Quantiles) -> dict[str, np.ndarray]:
  """All six arrays; NaN where nobody computed them. Quantiles are widened where we floor a range
  and they do not.
  """
  nan = np.full(quantiles.q01.shape, np.nan, np.float32)
  arrays = {
    key: nan if getattr(quantiles, key) is None else getattr(quantiles, key)
    for key in normalize.ARRAYS
  }
  floored = (
    np.asarray([norm == 'q99' for norm in quantiles.norms or ('q99',) * nan.size], bool)
    & quantiles.is_flat
  )
  ends = quantiles.middle - quantiles.half_range, quantiles.middle + quantiles.half_range
  return arrays | {
    key: np.where(floored, end, arrays[key]) for key, end in zip(('q01', 'q99'), ends)
  }
