"""Records describe themselves consistently, or say why not; those of published datasets find their
arrays.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.data import published
from tests.data import synthetic
from wam_jax.data import embodiments
from wam_jax.data import prompts
from wam_jax.data import record as record_lib
from wam_jax.data import sources

Slice, View = record_lib.Slice, record_lib.View


@pytest.mark.parametrize('name', sorted(embodiments.EMBODIMENTS))
def test_record_survives_json(name):
  record = embodiments.get(name)
  assert record.name == name
  assert record_lib.from_dict(json.loads(json.dumps(dataclasses.asdict(record)))) == record


def test_records_of_older_checkpoints_are_read():
  """As the first version wrote them: without the fields that came later."""
  old = {
    'name': 'bridge_widowx',
    'composite': [64, 64],
    'control_hz': 5.0,
    'video_fps': 2.5,
    'chunk_s': 0.8,
    'prompt': '{}',
    'language': ['language_instruction'],
    'views': [{'key': 'image_0', 'row': 0, 'column': 0, 'height': 64, 'width': 64}],
    'state': [
      {'key': 'state', 'start': a, 'stop': b, 'unit': unit, 'relative_to': '', 'rest': ''}
      for a, b, unit in ((0, 3, 'm'), (3, 6, 'rad'), (6, 7, 'normalized'))
    ],
    'action': [
      {'key': 'action', 'start': a, 'stop': b, 'unit': unit, 'relative_to': '', 'rest': rest}
      for a, b, unit, rest in (
        (0, 3, 'm', ''),
        (3, 6, 'rad', ''),
        (6, 7, 'normalized', 'state:6:7'),
      )
    ],
  }
  assert record_lib.from_dict(old) == embodiments.get('bridge_widowx')


@pytest.mark.parametrize('name', sorted(published.STEPS))
def test_published_datasets_have_what_their_records_need(name, tmp_path):
  """Every key, nested ones too, is found, and state and action have their columns in the record's
  order.
  """
  record = embodiments.get(name)
  episode = sources.Episodes(published.write(tmp_path, name, [9]), 'train', record)[0]
  # At step t column j of an array is t + j / 8, of an action 100 more; an image is grey 2 t.
  t_T1 = np.arange(9)[:, None]
  j = lambda slices: np.asarray([i / 8 for s in slices for i in range(s.start, s.stop)])
  np.testing.assert_allclose(episode.state_TX, t_T1 + j(record.state), atol=1e-5)
  np.testing.assert_allclose(episode.action_TU, 100 + t_T1 + j(record.action), atol=1e-5)
  # Of step 7, less what JPEG loses.
  greys = [episode.decode(view.key, 7).mean() for view in record.views]
  np.testing.assert_allclose(greys, 14, atol=1)
  (span,) = episode.spans
  assert (span.start, span.stop) == (0, 9)
  assert len(span.texts) == len(record.language)


def test_droid_reads_all_three_instructions(tmp_path):
  episode = sources.Episodes(
    published.write(tmp_path, 'droid', [9]), 'train', embodiments.get('droid')
  )[0]
  assert episode.texts(0) == ('Push It', 'Push It_2', 'Push It_3')


@pytest.mark.parametrize(
  'name, dims, stride, steps, frames, seconds',
  [
    # State and action dimensions; control steps a frame and a chunk; frames and seconds a chunk.
    ('droid', (8, 8), 3, 24, 8, 1.6),
    ('droid_wan22', (8, 8), 3, 24, 8, 1.6),
    ('agibot', (20, 22), 6, 48, 8, 1.6),
    ('agibot_reference', (20, 22), 3, 24, 8, 0.8),
    ('agibot_world', (20, 22), 6, 48, 8, 1.6),
    ('yam', (14, 14), 6, 48, 8, 1.6),
    ('yam_reference', (14, 14), 3, 24, 8, 0.8),
    ('oxe', (0, 7), 1, 8, 8, 1.6),
    # RT-1 is recorded at 3 Hz, below the 5 frames a second: every step is a frame.
    ('oxe_rt1', (8, 7), 1, 8, 8, 8 / 3),
    ('libero', (8, 7), 4, 32, 8, 1.6),
    ('human', (0, 0), 1, 8, 8, 1.6),
    ('bridge_widowx', (7, 7), 2, 4, 2, 0.8),
    ('tabletop_arm', (6, 3), 6, 12, 2, 0.8),
  ],
)
def test_dimensions_and_rates(name, dims, stride, steps, frames, seconds):
  """The reference's dimensions; the paper's 5 frames a second and 1.6 s, or the reference's every
  third and 24.
  """
  r = embodiments.get(name)
  assert (r.proprio_dim, r.action_dim) == dims
  assert (r.stride, r.steps_per_chunk, r.camera_frames_per_chunk) == (stride, steps, frames)
  assert r.chunk_s == pytest.approx(seconds)


@pytest.mark.parametrize(
  'control_hz, stride, fps',
  [
    (3, 1, 3),
    (5, 1, 5),
    (10, 2, 5),
    (12.5, 2, 6.25),
    (15, 3, 5),
    (20, 4, 5),
    (30, 6, 5),
    (50, 10, 5),
  ],
)
def test_timing_at_any_rate(control_hz, stride, fps):
  record = dataclasses.replace(embodiments.get('oxe'), **record_lib.timing(control_hz))
  assert (record.stride, record.camera_frames_per_chunk, record.video_fps) == (
    stride,
    8,
    pytest.approx(fps),
  )


def test_reference_timing_changes_rates_and_normalization_only():
  droid, agibot = embodiments.get('droid'), embodiments.get('agibot')
  assert record_lib.reference_timing(droid) is droid  # The paper's rates at 15 Hz.
  reference = record_lib.reference_timing(agibot)
  assert reference == embodiments.get('agibot_reference')
  assert {s.norm for s in (*reference.state, *reference.action)} == {'q99_reference'}
  back = [
    tuple(dataclasses.replace(s, norm='q99') for s in part)
    for part in (reference.state, reference.action)
  ]
  assert (
    dataclasses.replace(
      reference, name='agibot', video_fps=5.0, chunk_s=1.6, state=back[0], action=back[1]
    )
    == agibot
  )


def test_what_counts_from_the_state():
  """Joints for DROID, all but the base's velocity for AgiBot, everything for YAM."""
  assert embodiments.get('droid').reference_columns == (*range(7), -1)
  assert embodiments.get('droid').rest_columns == (-1,) * 7 + (7,)
  for name in ('agibot', 'agibot_world'):
    assert embodiments.get(name).reference_columns == (*range(20), -1, -1)
  assert embodiments.get('yam').reference_columns == tuple(range(14))
  assert set(embodiments.get('libero').reference_columns) == {-1}


def test_released_robots_have_their_prompts():
  for name, template in (
    ('droid', prompts.DROID),
    ('agibot_reference', prompts.AGIBOT),
    ('yam', prompts.YAM),
    ('human', prompts.HUMAN),
  ):
    assert embodiments.get(name).prompt == template


def test_composite_is_scaled_with_its_rectangles():
  small = embodiments.get('droid_wan22')
  assert small.composite == (320, 640)
  assert [(v.row, v.column, v.height, v.width) for v in small.views] == [
    (160, 0, 160, 320),
    (160, 320, 160, 320),
    (0, 0, 160, 640),
  ]
  with pytest.raises(
    ValueError, match=r"'droid' do not end on whole pixels in a composite of \(100, 333\)"
  ):
    record_lib.with_composite(embodiments.get('droid'), 100, 333, 'odd')


def test_reference_columns():
  record = dataclasses.replace(
    synthetic.CLOCK,
    state=(Slice('grip', 0, 1, 'm'), Slice('joints', 2, 6, 'rad')),
    action=(Slice('g', 0, 1, 'm'), Slice('j', 0, 2, 'rad', relative_to='joints:3:5')),
  )
  assert record.reference_columns == (-1, 2, 3)


def test_a_slice_changes_units_and_back():
  # AgiBot's gripper: 35 to 120 in the files, and clipped, so that 205 does not come back.
  grippers = Slice('effector/position', 0, 1, 'normalized', offset=35, scale=85, clip=(0, 1))
  got = record_lib.convert(
    (Slice('arm', 0, 2, 'rad'), grippers), np.float32([[1, 2, 35], [3, 4, 120], [5, 6, 205]])
  )
  np.testing.assert_array_equal(got, [[1, 2, 0], [3, 4, 1], [5, 6, 1]])
  np.testing.assert_array_equal(
    record_lib.restore((Slice('arm', 0, 2, 'rad'), grippers), got),
    [[1, 2, 35], [3, 4, 120], [5, 6, 120]],
  )
  inverted = Slice('closedness', 0, 1, 'normalized', offset=1, scale=-1)
  np.testing.assert_array_equal(inverted.convert(np.float32([0, 0.25, 1])), (1, 0.75, 0))
  libero = embodiments.get('libero').action
  # Opens, then closes.
  stored = np.float32([[0.1, 0.2, 0.3, 0, 0, 0, -1], [0.1, 0.2, 0.3, 0, 0, 0, 1]])
  np.testing.assert_array_equal(record_lib.convert(libero, stored)[:, 6], (1, 0))
  np.testing.assert_array_equal(
    record_lib.restore(libero, record_lib.convert(libero, stored)), stored
  )


def test_read_takes_a_records_vector_from_named_arrays():
  record = embodiments.get('agibot_world')
  arrays = {
    'joint/position': np.arange(14),
    'effector/position': [35, 77.5],
    'head/position': [20, 21],
    'waist/position': [22, 23],
    'camera': 'unused',
  }
  got = record_lib.read(record.state, arrays)
  np.testing.assert_array_equal(got, [*range(14), 0, 0.5, 20, 21, 22, 23])
  assert got.dtype == np.float32
  assert record_lib.read((), arrays).shape == (0,)
  with pytest.raises(
    ValueError, match=r"'head/position' is missing; 'waist/position' has 1 columns; got .*'camera'"
  ):
    record_lib.read(
      record.state,
      {k: v for k, v in arrays.items() if k != 'head/position'} | {'waist/position': [1]},
    )


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(video_fps=3.0), 'video_fps=3.0 must divide control_hz=10.0'),
    (dict(chunk_s=0.85), 'chunk_s=0.85 must be a whole number of steps'),
    (dict(chunk_s=0.6), '6 steps a chunk must be a multiple of 4 steps a camera frame'),
    (dict(views=()), 'needs at least one view'),
    (dict(views=(View('top', 8, 0, 16, 16),)), "view 'top' ends outside the composite"),
    (dict(views=(View('top', 0, 0, 16, 16, flip='up'),)), "flip='up' of view 'top' must be one of"),
    (
      dict(views=(View('top', 0, 0, 16, 16, repeat=3),)),
      "repeat=3 of view 'top' must divide its width 16",
    ),
    (
      dict(action=(Slice('action', 0, 1, 's', 'proprio:2:4'),)),
      "relative_to='proprio:2:4' .* lies in no state slice",
    ),
    (dict(action=(Slice('action', 0, 1, 's', 'proprio:0:2'),)), 'or has another width'),
    (dict(action=(Slice('action', 2, 2, 's'),)), "slice 'action' takes the columns 2 to 2"),
    (dict(action=(Slice('action', 0, 1, 's', scale=0),)), "scale of slice 'action' must not be 0"),
    (
      dict(action=(Slice('action', 0, 1, 's', clip=(1, 0)),)),
      r"clip=\(1, 0\) of slice 'action' must be \(lowest",
    ),
    (
      dict(action=(Slice('action', 0, 1, 's', norm='best'),)),
      "norm='best' of slice 'action' must be one of",
    ),
    (dict(resize='cubic'), "resize='cubic' must be one of"),
    (dict(success='good'), "success='good' needs episode_key"),
  ],
)
def test_inconsistent_records(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(synthetic.CLOCK, **change)


def test_an_unknown_robot_is_told():
  with pytest.raises(ValueError, match="There is no embodiment 'hexapod'; .*bridge_widowx"):
    embodiments.get('hexapod')


def test_prompt_fills_every_brace():
  record = dataclasses.replace(synthetic.CLOCK, prompt='A robot {} now. It should {}.')
  assert record.instruct(' Push IT ') == 'A robot push it now. It should push it.'
