"""What crosses modules is built by name alone, and new fields travel by themselves."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from wam_jax import train_step
from wam_jax import types
from wam_jax.control import memory
from wam_jax.models import dit

JOINTS = (
  types.Features,
  types.Batch,
  types.Observation,
  types.Task,
  types.Noisy,
  types.Body,
  types.Condition,
  train_step.TrainState,
  train_step.Window,
  train_step.Noise,
  train_step.Counts,
  memory.Eyes,
  memory.Memory,
  memory.PolicyState,
  dit.Tokens,
)


@pytest.mark.parametrize('joint', JOINTS, ids=lambda joint: joint.__name__)
def test_arrays_cannot_be_matched_by_place(joint):
  """Two arrays of one shape that change places would pass every check of shapes."""
  names = [field.name for field in dataclasses.fields(joint)]
  # Each says by its number which field it was meant for.
  arrays = [np.full(2, i, np.float32) for i in range(len(names))]
  with pytest.raises(TypeError, match='positional argument'):
    joint(*arrays)
  by_name = joint(**dict(zip(names, arrays, strict=True)))
  assert [getattr(by_name, name)[0] for name in names] == list(range(len(names)))


@pytest.mark.parametrize('joint', [types.Noisy, types.Body, types.Condition, types.Task])
def test_joints_are_trees_of_their_fields(joint):
  """So that `jit`, meshes and `jax.tree.map` take them whole."""
  names = [field.name for field in dataclasses.fields(joint)]
  whole = joint(**{name: np.zeros(3) for name in names})
  moved = jax.tree.map(lambda x: x + 1, whole)
  assert isinstance(moved, joint)
  assert len(jax.tree.leaves(moved)) == len(names)
  assert not jax.tree.leaves(types.UNCONDITIONED)
