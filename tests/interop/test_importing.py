"""What an import makes: a checkpoint that training and serving read, written weight by weight."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import weakref

import jax
import numpy as np
import pytest

from tests.interop import conversions
from tests.interop import tiny
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train_step
from wam_jax.data import robot as robot_lib
from wam_jax.interop import foreign
from wam_jax.interop import lazy
from wam_jax.interop.dreamzero import layout as dreamzero_layout
from wam_jax.interop.files import orbax
from wam_jax.interop.table import rows as rows_lib


def test_imported_checkpoint_is_what_training_and_serving_read(tmp_path):
  weights = tiny.write_dreamzero(tmp_path / 'source')
  (tmp_path / 'source' / 'tokenizer').mkdir()
  (tmp_path / 'source' / 'tokenizer' / 'spiece.model').write_bytes(b'pieces')
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')

  config, params, frozen, data, step, _ = checkpoint.load_for_inference(tmp_path / 'run')
  assert step == 0
  text = config.model.text
  without_vocabulary = dataclasses.replace(text, tokenizer='')
  assert dataclasses.replace(config.model, text=without_vocabulary) == tiny.I2V
  assert pathlib.Path(text.tokenizer).read_bytes() == b'pieces'
  written = json.loads((tmp_path / 'run/config.json').read_text())
  assert written == json.loads(json.dumps(cfg.to_dict(config)))
  assert list(robot_lib.from_metadata(data)) == ['droid']

  # Training finds every parameter that it expects.
  mesh = sharding.make_mesh(dict.fromkeys(config.mesh, 1), jax.devices()[:1])
  abstract = train_step.abstract_state(config, mesh, frozen)
  assert checkpoint.list_mismatches(abstract.params, params) == []

  # Every array is the one of the official checkpoint, in our order of axes.
  parts, unknown = dreamzero_layout.split_parts(weights)
  assert not unknown
  tables = foreign.make_tables(tiny.I2V, 'wan')
  trees = {
    'dit': params,
    'text': frozen.text.params,
    'image': frozen.image.params,
    'tokenizer': frozen.tokenizer.params,
  }
  for part, tree in trees.items():
    want = rows_lib.to_params(tables[part], parts[part])
    assert jax.tree.structure(tree) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, tree, want)
    assert {x.dtype for x in jax.tree.leaves(tree)} == {tiny.BF16}


def test_outputs_are_never_overwritten(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  with pytest.raises(ValueError, match='exists already; nothing was changed'):
    conversions.import_from(tmp_path / 'source', tmp_path / 'source')
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  with pytest.raises(ValueError, match='exists already'):
    conversions.export_to(tmp_path / 'run', tmp_path / 'source')


def test_one_weight_at_a_time_is_in_memory(tmp_path, monkeypatch):
  tiny.write_dreamzero(tmp_path / 'source')
  # Nothing is held back to be written with more.
  monkeypatch.setattr(orbax, '_SLAB_BYTES', 1)
  alive = weakref.WeakValueDictionary()
  counts = []
  read = lazy.Stored.read

  def count_alive(stored):
    array = read(stored)
    alive[len(counts)] = array
    counts.append(len(alive))
    return array

  monkeypatch.setattr(lazy.Stored, 'read', count_alive)
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')
  # A released model need not fit in memory. One weight may be written while the next is read.
  assert len(counts) == 394
  assert max(counts) <= 2
