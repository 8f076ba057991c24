"""Records describe themselves consistently, or say why not."""
from __future__ import annotations

import dataclasses
import json

import pytest

from tests.data import synthetic
from wam_jax.data import embodiments

Slice, View = embodiments.Slice, embodiments.View


@pytest.mark.parametrize('name', sorted(embodiments.EMBODIMENTS))
def test_record_survives_json(name):
  record = embodiments.get(name)
  assert record.name == name
  assert embodiments.from_dict(json.loads(json.dumps(dataclasses.asdict(record)))) == record


def test_reference_columns():
  record = dataclasses.replace(
      synthetic.CLOCK, state=(Slice('grip', 0, 1, 'm'), Slice('joints', 2, 6, 'rad')),
      action=(Slice('g', 0, 1, 'm'), Slice('j', 0, 2, 'rad', relative_to='joints:3:5')))
  assert record.reference_columns == (-1, 2, 3)


@pytest.mark.parametrize('change, message', [
    (dict(video_fps=3.0), 'video_fps=3.0 must divide control_hz=10.0'),
    (dict(chunk_s=0.85), 'chunk_s=0.85 must be a whole number of steps'),
    (dict(chunk_s=0.6), '6 steps a chunk must be a multiple of 4 steps a camera frame'),
    (dict(views=()), 'needs at least one view'),
    (dict(views=(View('top', 8, 0, 16, 16),)), "view 'top' ends outside the composite"),
    (dict(action=(Slice('action', 0, 1, 's', 'proprio:2:4'),)), "relative_to='proprio:2:4' .* lies in no state slice"),
    (dict(action=(Slice('action', 0, 1, 's', 'proprio:0:2'),)), 'or has another width'),
])
def test_inconsistent_records(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(synthetic.CLOCK, **change)


def test_unknown_name():
  with pytest.raises(ValueError, match="There is no embodiment 'hexapod'; .*bridge_widowx"):
    embodiments.get('hexapod')
