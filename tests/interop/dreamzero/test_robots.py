"""Robots of DreamZero checkpoints: records and statistics both ways, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
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
from wam_jax.interop.dreamzero import experiment
from wam_jax.interop.dreamzero import robots as robots_lib


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
  # The reference does otherwise where a range is 0 (spec 5.3): it gets our floor of 0.001.
  robot.statistics.state.q99[3] = robot.statistics.state.q01[3]
  experiment.write(tmp_path, {'oxe_droid': robot}, tiny.I2V, None)
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
    experiment.write(tmp_path, {'oxe_droid': flipped}, tiny.I2V, None)

  # The shape of the camera's picture is not in a record; only DROID's is known.
  whole = record_lib.View(key='image', row=0, column=0, height=352, width=640)
  unknown_camera = conversions.make_droid(views=(whole,), composite=(352, 640))
  with pytest.raises(ValueError, match='pass --camera_resolution=COLUMNSxROWS'):
    experiment.write(tmp_path, {'xdof': unknown_camera}, tiny.I2V, None)


def test_a_key_relative_for_one_robot_only_is_refused(tmp_path):
  # The reference has one list of relative keys for all robots.
  slices = embodiments.get('droid').action
  absolute = tuple(dataclasses.replace(s, relative_to='') for s in slices)
  views, _ = robots_lib._make_composite('xdof', ('a', 'b', 'c'), (176, 320))
  robots = {
    'oxe_droid': conversions.make_droid(),
    'xdof': conversions.make_droid(action=absolute, views=views),
  }
  with pytest.raises(
    ValueError, match='relative for all robots or for none:\n  joint_position of xdof'
  ):
    experiment.write(tmp_path, robots, tiny.I2V, None)


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
