"""A process of a job that starts from other weights: `python -m tests.shares PORT NUMBER COUNT
DIRECTORY`. Prints, one JSON a line, what it read and held of each base, and each error. Or, with
bases in a bucket instead, the hashes of each.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
import optax

from tests import weights
from tests.models import test_encoders
from wam_jax import checkpoint
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import frozen as frozen_lib
from wam_jax import identity
from wam_jax import items
from wam_jax import sharding
from wam_jax import source
from wam_jax import start
from wam_jax import storage
from wam_jax import train_step
from wam_jax.checkpoint import reading
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop.files import orbax
from wam_jax.models import encoders

# Weights of 50 MB and encoders of 30 MB: more than what else a process allocates meanwhile.
MODEL = dataclasses.replace(
  test_encoders.MODEL,
  dim=512,
  mlp_dim=2048,
  num_heads=4,
  num_layers=3,
  text=dataclasses.replace(
    test_encoders.MODEL.text,
    vocab=8192,
    dim=512,
    layers=2,
    heads=4,
    attention_dim=512,
    mlp_dim=1024,
  ),
)
LORA = dataclasses.replace(MODEL, lora=cfg.LoraConfig(rank=2))
DEVICES = 8


def make_mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh({'slice': 1, 'data': 1, 'fsdp': DEVICES, 'tensor': 1, 'seq': 1})


def make_config(base: str | pathlib.Path, model: cfg.ModelConfig = MODEL) -> cfg.TrainConfig:
  """A run that holds little beside the weights of its base."""
  return cfg.TrainConfig(
    model=model,
    init_from=str(base),
    trainable=('action_decoder',),
    frozen_dtype='float32',
    optimizer=cfg.OptimizerConfig(ema_decay=0.0),
  )


@functools.cache
def draw_encoders() -> encoders.Encoders:
  return weights.draw_encoders(MODEL)


@functools.cache
def draw_params(model: cfg.ModelConfig) -> Any:
  return weights.draw_params(model, seed=3)


def write_import(workdir: pathlib.Path) -> None:
  """Weights and encoders as `wam_jax.convert import` writes them."""
  frozen = draw_encoders()
  trees = {
    own.checkpoint_place(workdir) / 'params': (draw_params(MODEL), MODEL.dim),
    frozen_lib.find_place(workdir, encoders.fingerprint(frozen)): (encoders.to_tree(frozen), 0),
  }
  for place, (tree, width) in trees.items():
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(p, simple=True, separator='/'): x for p, x in leaves}
    shapes = {path: lazy.Shape(x.shape, x.dtype) for path, x in arrays.items()}
    writer = orbax.ItemWriter(place, shapes, frozenset(), width)
    for path, x in arrays.items():
      writer.write(path, x)
    writer.finish()
  hashes = own.Hashes(identity.hash_arrays(draw_params(MODEL)), encoders.fingerprint(frozen))
  config = cfg.TrainConfig(model=MODEL)
  own.write_metadata(workdir, config, {}, {'layout': 'of this test'}, hashes)


def write_lora_run(workdir: pathlib.Path) -> None:
  """A checkpoint with adapters, as a run on all devices of this process writes it."""
  config = dataclasses.replace(make_config('base', LORA), trainable=('lora',))
  frozen = draw_encoders()
  abstract = train_step.abstract_state(config, make_mesh(), frozen)
  params = draw_params(LORA)
  state = abstract.replace(
    step=np.int32(1),
    params=sharding.place(params, jax.tree.map(lambda x: x.sharding, abstract.params)),
    ema_params=None,
    opt_state=optax.sgd(0.1).init({}),
    frozen=sharding.place(frozen, jax.tree.map(lambda x: x.sharding, abstract.frozen)),
  )
  metadata = {'config': cfg.to_dict(config), 'data': {}, 'encoders': encoders.fingerprint(frozen)}
  with checkpoint.Checkpoints(workdir, 1) as checkpoints:
    checkpoints.save(1, state, {}, metadata)


def start_from(base: pathlib.Path) -> dict[str, Any]:
  """What a start from `base` reads and holds on this process, and which numbers it begins with."""
  measured: dict[str, list[int]] = {}

  def measuring(name: str) -> Callable[..., Any]:
    read = getattr(source.Source, name)

    def call(*args):
      gc.collect()
      pathlib.Path('/proc/self/clear_refs').write_text('5')  # The peak counts from here.
      read_before = read_proc('io', 'rchar')
      held_before = read_proc('status', 'VmRSS')
      result = read(*args)
      jax.block_until_ready(result)
      peak = 1024 * (read_proc('status', 'VmHWM') - held_before)
      measured[name] = [read_proc('io', 'rchar') - read_before, peak]
      return result

    return call

  with (
    mock.patch.object(source.Source, 'read_encoders', measuring('read_encoders')),
    mock.patch.object(source.Source, 'read_params', measuring('read_params')),
  ):
    fresh = start._start_from(make_config(base), make_mesh(), base / 'nowhere')
  state = fresh.state
  held = sum(s.data.nbytes for x in jax.live_arrays() for s in x.addressable_shards)
  return {
    'read': measured,
    'held': held,
    'params': identity.hash_arrays(state.params),
    'frozen': identity.hash_arrays(encoders.to_tree(state.frozen)),
    'base': fresh.base['weights'],
    'encoders': fresh.encoders,
  }


def read_source(workdir, say):
  """(parameters, encoders, hashes of both) of the newest checkpoint, on one device."""
  found = source.open_source(workdir)
  mesh = jax.make_mesh((1,), ('fsdp',), devices=jax.devices()[:1])
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), found.frozen
  )
  shardings = jax.tree.map(lambda _: whole, found.params)
  params, weights = found.read_params(shardings, say)
  return params, found.read_encoders(like), weights, found.hash_encoders(say)


def read_proc(file: str, key: str) -> int:
  for line in pathlib.Path('/proc/self', file).read_text().splitlines():
    name, _, value = line.partition(':')
    if name == key:
      return int(value.split()[0])
  raise KeyError(key)


def find_error(call: Callable[[], Any]) -> dict[str, Any]:
  """Its message, and how long that took."""
  begun = time.monotonic()
  late = AssertionError('found out only when the state is made')
  with mock.patch.object(train_step, 'init_state', side_effect=late):
    try:
      call()
      message = 'none'
    except ValueError as e:
      message = str(e)
  return {'error': message, 'seconds': time.monotonic() - begun}


def main(argv: list[str]) -> None:
  if argv[1].startswith('gs://'):
    for base in argv[1:]:
      params, _, weights, hashes = read_source(base, print)
      assert weights == identity.hash_arrays(params)
      print(json.dumps([weights, hashes]), flush=True)
    return
  port, number, count, root = argv[1:]
  jax.distributed.initialize(f'localhost:{port}', int(count), int(number))
  storage.WAITS_S = (0.05, 0.05)
  place = pathlib.Path(root)
  tell = lambda what: print(json.dumps(what), flush=True)
  # Threads start and libraries load with the first read, which is not measured.
  items.load_whole(place / 'lora' / 'checkpoints' / '1' / 'optimizer')
  tell(start_from(place / 'import'))
  tell(start_from(place / 'lora'))

  begin = lambda config: start._start_from(config, make_mesh(), place / 'nowhere')
  wider = make_config(place / 'import', dataclasses.replace(MODEL, mlp_dim=1024))
  tell(find_error(lambda: begin(wider)))
  for absent in (0, 1):
    # The disk of one host has nothing there.
    seen = [] if int(number) == absent else [0]
    with mock.patch.object(reading, 'list_steps', return_value=seen):
      tell(find_error(lambda: begin(make_config(place / 'import'))))
  tell(find_error(lambda: begin(make_config(place / 'cut'))))


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
