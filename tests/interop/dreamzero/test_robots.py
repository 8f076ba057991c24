"""Robots of DreamZero checkpoints: records and statistics both ways, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from etils import epath

from tests.interop import conversions
from tests.interop import tiny
from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import prompts
from wam_jax.data import record as record_lib
from wam_jax.interop import foreign
from wam_jax.interop import layouts
from wam_jax.interop.dreamzero import composites
from wam_jax.interop.dreamzero import experiment
from wam_jax.interop.dreamzero import keys
from wam_jax.interop.dreamzero import quantiles
from wam_jax.interop.dreamzero import robots as robots_lib
from wam_jax.interop.dreamzero import serving


def test_statistics_and_record_come_from_the_checkpoint(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  (robot,) = layouts.open_source(epath.Path(tmp_path / 'source'), foreign.Options()).read_robots()
  shipped = embodiments.get('droid')

  # The record that is shipped, but normalized as the reference does it.
  def with_norms(slices):
    return tuple(dataclasses.replace(s, norm='q99_reference') for s in slices)

  assert robot.record == dataclasses.replace(
    shipped,
    prompt=prompts.DROID,
    state=with_norms(shipped.state),
    action=with_norms(shipped.action),
  )
  assert robot.center_crop
  assert robot.id == 0
  stored = tiny.metadata()['oxe_droid']['statistics']
  for kind in ('state', 'action'):
    for key in normalize.ARRAYS:
      want = np.float32(stored[kind]['joint_position'][key] + stored[kind]['gripper_position'][key])
      np.testing.assert_array_equal(getattr(getattr(robot.statistics, kind), key), want)
  assert robot.statistics.state.norms == ('q99_reference',) * 8


def test_a_robot_that_is_not_shipped_gets_a_record_of_its_own(tmp_path):
  content = tiny.metadata()
  for kind in ('state', 'action'):
    # Three joints instead of seven.
    content['oxe_droid']['modalities'][kind]['joint_position']['shape'] = [3]
    of_key = content['oxe_droid']['statistics'][kind]['joint_position']
    of_key.update({key: numbers[:3] for key, numbers in of_key.items()})
  tiny.write_experiment(tmp_path, tiny.conf((48, 64)), content)

  (robot,) = experiment.read_robots(epath.Path(tmp_path), tiny.I2V)
  # The wrist above over the whole width, each column twice, the others below; DROID's 15 Hz.
  record = robot.record
  assert (record.name, record.composite, record.proprio_dim) == ('oxe_droid', (96, 128), 4)
  assert (record.control_hz, record.video_fps, record.steps_per_chunk) == (15, 5, 24)
  assert record.views[2] == record_lib.View(
    key='wrist_image_left', row=0, column=0, height=48, width=128, repeat=2
  )
  # The joints are relative, the gripper is not.
  assert record.reference_columns == (0, 1, 2, -1)
  again = robots_lib.describe('oxe_droid', record, tiny.I2V).make_record(8)
  assert dataclasses.replace(again, language=record.language) == record


def test_flat_dimensions_are_exported_as_we_floor_them(tmp_path):
  robot = conversions.make_droid()
  # The reference does otherwise where a range is 0: it gets our floor of 0.001.
  robot.statistics.state.q99[3] = robot.statistics.state.q01[3]
  experiment.write(tmp_path, {'oxe_droid': robot}, tiny.I2V, serving.Serving())
  content = json.loads((tmp_path / experiment.METADATA).read_text())
  stored = content['oxe_droid']['statistics']['state']['joint_position']
  width = np.float32(stored['q99']) - np.float32(stored['q01'])
  np.testing.assert_allclose(width, [3, 3, 3, 1e-3, 3, 3, 3], atol=1e-6)


def test_what_the_reference_cannot_express_is_refused(tmp_path):
  views = embodiments.get('droid').views
  flipped = conversions.make_droid(
    views=tuple(dataclasses.replace(view, flip='rows') for view in views)
  )
  with pytest.raises(
    ValueError, match="cannot express embodiment 'droid' under the tag 'oxe_droid':\n  views"
  ):
    experiment.write(tmp_path, {'oxe_droid': flipped}, tiny.I2V, serving.Serving())

  # The shape of the camera's picture is not in a record; only that of DROID's own is known.
  whole = record_lib.View(key='image', row=0, column=0, height=352, width=640)
  for tag in ('xdof', 'oxe_droid'):
    unknown_camera = conversions.make_droid(
      views=(whole,), composite=(352, 640), prompt=prompts.TEMPLATES[tag]
    )
    with pytest.raises(ValueError, match='pass --camera_resolution=COLUMNSxROWS'):
      experiment.write(tmp_path, {tag: unknown_camera}, tiny.I2V, serving.Serving())


def shift_the_gripper() -> dict[str, Any]:
  *joints, gripper = embodiments.get('droid').action
  return {'action': (*joints, dataclasses.replace(gripper, offset=1.0, scale=-1.0))}


def put_two_side_by_side() -> dict[str, Any]:
  place = {'row': 0, 'height': 176, 'width': 320}
  left = record_lib.View(key='left', column=0, **place)
  right = record_lib.View(key='right', column=320, **place)
  return {'views': (left, right), 'composite': (176, 640)}


@pytest.mark.parametrize(
  ('changes', 'messages'),
  [
    # The server would execute 8 actions that were never trained.
    (dict(chunk_s=16 / 15, video_fps=7.5), [r'chunk_s \(1.06.* against 1.6\).* all 24 actions']),
    # Half as many frames as the model's chunk has.
    (dict(video_fps=2.5), [r'video_fps \(2.5 against 5.0\)']),
    (dict(resize='area'), [r"resize \('area' against 'bilinear'\): it resizes bilinear"]),
    (dict(prompt='{}'), [r"prompt \('{}' against \"A multi-view video .* fills the template"]),
    (shift_the_gripper(), [r'action action/gripper_position.offset \(1.0 against 0.0\)', 'scale']),
    (
      put_two_side_by_side(),
      [r'two cameras: .* the first above the second in the left half of a picture of \(176, 640\)'],
    ),
  ],
)
def test_whatever_a_record_says_otherwise_is_named(changes, messages):
  record = conversions.make_droid(**changes).record
  with pytest.raises(ValueError, match="cannot express embodiment 'droid'") as refusal:
    robots_lib.describe('oxe_droid', record, tiny.I2V)
  for message in messages:
    assert re.search(message, str(refusal.value)), refusal.value


def make_one_arm(**changes) -> record_lib.Embodiment:
  """Joints and gripper in one array, as LeRobot has them; the joints count from where they are."""

  def take(key, start, stop, relative_to=''):
    return record_lib.Slice(
      key=key, start=start, stop=stop, unit='rad', norm='q99_reference', relative_to=relative_to
    )

  fields = dict(
    name='one_arm',
    views=(record_lib.View(key='images/top', row=0, column=0, height=176, width=320),),
    composite=(176, 320),
    resize='bilinear',
    prompt=prompts.TEMPLATES['mecka_hands'],
    state=(take('state', 0, 6), take('state', 6, 7)),
    action=(take('action', 0, 6, 'state:0:6'), take('action', 6, 7)),
    **record_lib.timing(15.0),
  )
  return record_lib.Embodiment(**(fields | changes))


def test_one_array_becomes_joints_and_gripper(tmp_path):
  record = make_one_arm()
  robot = dataclasses.replace(conversions.make_droid(), record=record)
  statistics = normalize.Statistics(
    state=conversions.make_quantiles(7), action=conversions.make_quantiles(7), steps=5
  )
  robot = dataclasses.replace(robot, statistics=statistics)
  names = keys.parse('state:0:6=joint_position,state:6:7=gripper,action:6:7=gripper')
  where = serving.Serving(camera=(640, 480), names=names)
  (note,) = experiment.write(tmp_path, {'mecka_hands': robot}, tiny.I2V, where)
  assert note == (
    'keys of mecka_hands: video.top = images/top, state.joint_position = state:0:6, '
    'state.gripper = state:6:7, action.joint_position = action:0:6, action.gripper = action:6:7'
  )
  (back,) = experiment.read_robots(epath.Path(tmp_path), tiny.I2V)
  assert [s.key for s in back.record.action] == ['action/joint_position', 'action/gripper']
  assert back.record.reference_columns == record.reference_columns == (0, 1, 2, 3, 4, 5, -1)
  for kind in ('state', 'action'):
    for name in normalize.ARRAYS:
      got, want = (getattr(getattr(s, kind), name) for s in (back.statistics, statistics))
      np.testing.assert_array_equal(got, want)


def test_parts_have_names_by_themselves():
  description = robots_lib.describe('mecka_hands', make_one_arm(), tiny.I2V)
  assert [key.name for key in description.state] == ['state_0_6', 'state_6_7']
  # A relative action is called as what it counts from.
  assert [key.name for key in description.action] == ['state_0_6', 'action_6_7']
  assert description.relative == {'state_0_6'}

  # The state is one slice: it is cut where an action counts from a part of it.
  whole = make_one_arm(
    state=(dataclasses.replace(make_one_arm().state[0], start=0, stop=7),),
  )
  description = robots_lib.describe('mecka_hands', whole, tiny.I2V)
  assert [(key.name, key.width) for key in description.state] == [
    ('state_0_6', 6),
    ('state_6_7', 1),
  ]
  # One slice that counts from one slice.
  both = make_one_arm(
    state=whole.state,
    action=(dataclasses.replace(whole.action[0], stop=7, relative_to='state:0:7'),),
  )
  description = robots_lib.describe('mecka_hands', both, tiny.I2V)
  assert [key.name for key in description.action] == ['state']

  # Dots, as LeRobot has them in names, end the kind of a key there.
  dotted = make_one_arm(
    state=(dataclasses.replace(whole.state[0], key='observation.state'),),
    action=(),
    views=(dataclasses.replace(whole.views[0], key='observation.images.top'),),
  )
  description = robots_lib.describe('mecka_hands', dotted, tiny.I2V)
  assert [key.name for key in description.state] == ['observation_state']
  assert description.views == ('observation_images_top',)

  # Arrays of one name in two places.
  left, right = (dataclasses.replace(whole.state[0], key=f'{side}/joints') for side in 'lr')
  two = make_one_arm(state=(left, right), action=())
  description = robots_lib.describe('mecka_hands', two, tiny.I2V)
  assert [key.name for key in description.state] == ['l_joints', 'r_joints']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('joints', "must be ARRAY:START:STOP=NAME, .* got 'joints'"),
    ('state:0:6=my joints', "got 'state:0:6=my joints'"),
    (
      'state:0:5=joints',
      'names parts that .* does not have:\n  state:0:5=joints\nIt has state:0:6',
    ),
    ('state:0:6=a,state:6:7=a', "state 'a' is the name of several parts"),
    ('state:0:6=a,action:0:6=b', "action:0:6=b counts from state:0:6, which is 'a'"),
  ],
)
def test_names_that_do_not_fit_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    robots_lib.describe('mecka_hands', make_one_arm(), tiny.I2V, keys.parse(text))


def test_floored_ranges_are_exported_for_every_norm():
  flat = np.float32([2.0])
  arrays = dict(q01=flat, q99=flat, mean=flat, std=0 * flat, min=flat, max=flat)
  for norm, ends in (('q99', ('q01', 'q99')), ('min_max', ('min', 'max'))):
    stored = quantiles.write(
      normalize.Quantiles(**arrays, norms=(norm,)), (robots_lib.Key('x', 1, norm),)
    )['x']
    low, high = stored[ends[0]][0], stored[ends[1]][0]
    np.testing.assert_allclose((low + high, high - low), (4, 1e-3), rtol=1e-4)
  stored = quantiles.write(
    normalize.Quantiles(**arrays, norms=('mean_std',)), (robots_lib.Key('x', 1, 'mean_std'),)
  )['x']
  # (x - mean) / std here and there.
  np.testing.assert_allclose((stored['mean'][0], stored['std'][0]), (2, 5e-4))


def test_statistics_of_an_early_run_are_completed_and_said(tmp_path):
  robot = conversions.make_droid()
  early = {
    kind: normalize.Quantiles(
      q01=getattr(robot.statistics, kind).q01, q99=getattr(robot.statistics, kind).q99
    )
    for kind in ('state', 'action')
  }
  robot = dataclasses.replace(robot, statistics=normalize.Statistics(**early, steps=5))
  notes = experiment.write(tmp_path, {'oxe_droid': robot}, tiny.I2V, serving.Serving())
  assert 'of state and action of oxe_droid were never computed' in notes[-1]

  def refuse(word):
    raise ValueError(word)

  text = (tmp_path / experiment.METADATA).read_text()
  content = json.loads(text, parse_constant=refuse)['oxe_droid']
  joints = content['statistics']['state']['joint_position']
  assert joints['min'] == joints['q01']
  # Earlier exports wrote NaN instead, which is read as unknown.
  joints['mean'] = [float('nan')] * 7
  (tmp_path / experiment.METADATA).write_text(json.dumps({'oxe_droid': content}))
  (back,) = experiment.read_robots(epath.Path(tmp_path), tiny.I2V)
  assert back.statistics.state.mean is None
  assert back.statistics.action.mean is not None


def test_a_key_relative_for_one_robot_only_is_refused(tmp_path):
  # The reference has one list of relative keys for all robots.
  slices = embodiments.get('droid').action
  absolute = tuple(dataclasses.replace(s, relative_to='') for s in slices)
  views, _ = composites.make('xdof', ('a', 'b', 'c'), (176, 320))
  robots = {
    'oxe_droid': conversions.make_droid(),
    'xdof': conversions.make_droid(action=absolute, views=views, prompt=prompts.TEMPLATES['xdof']),
  }
  with pytest.raises(
    ValueError, match='relative for all robots or for none:\n  joint_position of xdof'
  ):
    experiment.write(tmp_path, robots, tiny.I2V, serving.Serving())


def edit_conf(source: pathlib.Path, edit: Callable[[dict[str, Any]], Any]) -> None:
  content = tiny.conf()
  edit(content)
  tiny.write_experiment(source, content, tiny.metadata())


def edit_metadata(source: pathlib.Path, edit: Callable[[dict[str, Any]], Any]) -> None:
  content = tiny.metadata()
  edit(content['oxe_droid'])
  tiny.write_experiment(source, tiny.conf(), content)


def edit_transform(source: pathlib.Path, number: int, **changes) -> None:
  """`changes` to one step of DROID's transform."""

  def edit(conf):
    conf['transforms']['oxe_droid']['transforms'][number].update(changes)

  edit_conf(source, edit)


def remove_statistics(source: pathlib.Path) -> None:
  (source / 'experiment_cfg/metadata.json').unlink()


def remove_a_statistic(source: pathlib.Path) -> None:
  edit_metadata(source, lambda m: m['statistics']['action']['joint_position'].pop('q99'))


def lose_a_quantile(source: pathlib.Path) -> None:
  edit_metadata(
    source, lambda m: m['statistics']['state']['gripper_position'].update(q01=[float('nan')])
  )


def divide_by_no_deviation(source: pathlib.Path) -> None:
  content, numbers = tiny.conf(), tiny.metadata()
  steps = content['transforms']['oxe_droid']['transforms']
  steps[3]['normalization_modes'] = {'state.gripper_position': 'mean_std'}
  numbers['oxe_droid']['statistics']['state']['gripper_position']['std'] = [0.0]
  tiny.write_experiment(source, content, numbers)


def widen_a_statistic(source: pathlib.Path) -> None:
  edit_metadata(source, lambda m: m['statistics']['state']['gripper_position'].update(q01=[1, 2]))


def remove_cameras(source: pathlib.Path) -> None:
  edit_metadata(source, lambda m: m['modalities'].pop('video'))


def name_an_unknown_robot(source: pathlib.Path) -> None:
  tiny.write_experiment(source, tiny.conf(), {'r2d2': {}})


def remove_transforms(source: pathlib.Path) -> None:
  edit_conf(source, lambda c: c.pop('transforms'))


def write_transforms_of_another_form(source: pathlib.Path) -> None:
  edit_conf(source, lambda c: c['transforms'].update(oxe_droid=[]))


def cut_conf(source: pathlib.Path) -> None:
  (source / 'experiment_cfg/conf.yaml').write_text('a: [1')


def ask_for_statistics_per_horizon(source: pathlib.Path) -> None:
  edit_conf(source, lambda c: c.update(relative_action_per_horizon=True))


def ask_for_another_normalization(source: pathlib.Path) -> None:
  modes = {'state.joint_position': 'binary', 'state.gripper_position': 'q99'}
  edit_transform(source, 3, normalization_modes=modes)


def ask_for_another_crop(source: pathlib.Path) -> None:
  edit_transform(source, 1, scale=0.9)


def ask_for_another_resize(source: pathlib.Path) -> None:
  edit_transform(source, 2, interpolation='nearest', antialias=False)


def ask_for_one_prompt(source: pathlib.Path) -> None:
  content = tiny.conf()
  transform = 'model.dreamzero.transform.dreamzero_cotrain.DreamTransform'
  step = {'_target_': f'groot.vla.{transform}', 'always_use_default_instruction': True}
  content['transforms']['oxe_droid']['transforms'].append(step | {'max_length': 512})
  tiny.write_experiment(source, content, tiny.metadata())


def remove_the_state(source: pathlib.Path) -> None:
  edit_transform(source, 5, state_concat_order=[])


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      remove_statistics,
      r'has no statistics:\n  .*/experiment_cfg/metadata.json does not exist\n.*--nostatistics',
    ),
    (
      remove_a_statistic,
      'oxe_droid: statistics.action.joint_position.q99 must be there, with one number per '
      'dimension',
    ),
    (lose_a_quantile, r'statistics.state.gripper_position.q01 \(not finite\)'),
    (divide_by_no_deviation, r'statistics.state.gripper_position.std \(0, by which'),
    (widen_a_statistic, 'statistics.state.gripper_position.q01 must be there'),
    (remove_cameras, 'video is missing'),
    (
      name_an_unknown_robot,
      'statistics of r2d2 and transforms of oxe_droid, but both of none of oxe_droid, agibot',
    ),
    (remove_transforms, 'statistics of oxe_droid and transforms of nobody'),
    (
      write_transforms_of_another_form,
      'oxe_droid: not of the form that the reference writes',
    ),
    (cut_conf, 'conf.yaml is not YAML'),
    (ask_for_statistics_per_horizon, 'per-horizon statistics are not supported'),
    (
      ask_for_another_normalization,
      'normalization_modes state.joint_position=binary are not supported',
    ),
    (ask_for_another_crop, 'VideoCrop.scale=0.9 is not supported'),
    (
      ask_for_another_resize,
      'VideoResize.interpolation=nearest is not supported, only linear; VideoResize.antialias=Fal',
    ),
    (
      ask_for_one_prompt,
      'always_use_default_instruction=True is not supported, only False; DreamTransform.max_length='
      '512 is not supported, only 6',
    ),
    (
      remove_the_state,
      r"relative_action_keys \['joint_position'\] have no state of the same name",
    ),
  ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, damage, message):
  conversions.assert_refused(tmp_path, damage, message)


def test_statistics_may_be_left_out_on_purpose(tmp_path):
  weights = tiny.write_dreamzero(tmp_path / 'source')
  remove_statistics(tmp_path / 'source')
  report = conversions.import_from(tmp_path / 'source', tmp_path / 'run', statistics=False)
  assert report['embodiments'] == []
  with pytest.raises(ValueError, match='knows no robot with statistics'):
    conversions.export_to(tmp_path / 'run', tmp_path / 'back')
  conversions.export_to(tmp_path / 'run', tmp_path / 'back', statistics=False)
  conversions.assert_same_bits(tiny.load(tmp_path / 'back'), weights)
