"""A process of a job of two that restores checkpoints while something is wrong with one of them:
`python -m tests.damaged PORT NUMBER DIRECTORY`. Writes what came of each to NUMBER.jsonl there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

from wam_jax import checkpoint
from wam_jax import cli
from wam_jax import config as cfg
from wam_jax import hosts
from wam_jax import integrity
from wam_jax import storage
from wam_jax import train_step
from wam_jax.checkpoint import reading
from wam_jax.models import encoders
from wam_jax.models import tokenizer

CONFIG = cfg.from_config_dict(cfg.base())
METADATA = {'config': cfg.to_dict(CONFIG), 'data': {}, 'encoders': {'tokenizer': 'of this test'}}


def make_state(step: int) -> train_step.TrainState:
  """A state whose numbers depend on `step`, spread over the devices of both processes."""
  mesh = jax.make_mesh((jax.device_count(),), ('data',))
  rng = np.random.default_rng(step)

  def draw(*shape, rng=rng):
    array = rng.standard_normal(shape).astype(np.float32)
    # Where the first axis can be split, it is.
    axes = ('data',) if shape[0] % mesh.size == 0 else ()
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.make_array_from_callback(shape, placed, lambda index: array[index])

  params = {'block': {'w': draw(8, 6)}, 'scale': draw(3)}
  c = CONFIG.model.tokenizer
  # Encoders are the same at every step.
  fixed = functools.partial(draw, rng=np.random.default_rng(0))
  patches = tokenizer.PatchTokenizer(fixed(6), fixed(6, 2), fixed(2, 6), c.temporal, c.spatial)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  number = jax.make_array_from_callback((), whole, lambda _: np.int32(step))
  return train_step.TrainState(
    step=number,
    params=params,
    ema_params=None,
    opt_state=optax.sgd(0.1).init(params),
    frozen=encoders.Encoders(patches, None, None, CONFIG.model),
  )


def save(workdir: pathlib.Path, steps) -> None:
  with checkpoint.Checkpoints(workdir, keep=5) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {'next': step}, METADATA)


def restore(workdir: pathlib.Path) -> str:
  """Which step came back, or the message."""
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state(9)
  )
  try:
    with checkpoint.Checkpoints(workdir, keep=5) as checkpoints:
      got = checkpoints.restore(CONFIG, lambda _: like, lambda _: None)
  except (ValueError, OSError) as e:
    return str(e)
  want = make_state(got.step)
  for here, expected in zip(jax.tree.leaves(got.state), jax.tree.leaves(want)):
    for shard, other in zip(here.addressable_shards, expected.addressable_shards):
      np.testing.assert_array_equal(shard.data, other.data)
  return f'step {got.step}'


@contextlib.contextmanager
def raising(owner, name: str, error: Exception, times: float) -> Iterator[None]:
  """The function `name` of `owner` raises, so many times at first."""
  real = getattr(owner, name)
  left = times

  def fail(*args, **kwargs):
    nonlocal left
    left -= 1
    if left >= 0:
      raise error
    return real(*args, **kwargs)

  with mock.patch.object(owner, name, fail):
    yield


def cut(path: pathlib.Path) -> None:
  for file in (path / 'params').rglob('d/*'):
    file.write_bytes(file.read_bytes()[:16])


def cut_without_list(path: pathlib.Path) -> None:
  (path / 'files.json').unlink()
  cut(path)


# On the disk, so for both.
DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
  'a short file': cut,
  'a missing file': lambda path: next((path / 'params').rglob('d/*')).unlink(),
  'no metadata': lambda path: (path / 'metadata' / 'metadata').unlink(),
  'a short file of an older version': cut_without_list,
}

READER = ocp.PyTreeCheckpointHandler
REFUSED = PermissionError(13, 'Permission denied')
BUSY = OSError('503 Service Unavailable')
ALWAYS = float('inf')
# In the memory of one process: (what raises, its error, how often).
ERRORS = {
  'busy for a moment': (READER, 'restore', BUSY, 1),
  'busy': (READER, 'restore', BUSY, ALWAYS),
  'time-out': (READER, 'restore', TimeoutError('Deadline exceeded'), ALWAYS),
  'out of memory': (READER, 'restore', RuntimeError('RESOURCE_EXHAUSTED: Out of memory'), ALWAYS),
  'not found here': (READER, 'restore', FileNotFoundError('NOT_FOUND: params'), ALWAYS),
  'no permission': (reading, 'load_metadata', REFUSED, ALWAYS),
  'listing refused': (integrity, 'list_steps', REFUSED, ALWAYS),
  'listing refused for a moment': (integrity, 'list_steps', REFUSED, 1),
}


def try_damages(root: pathlib.Path, number: int, report: Report) -> None:
  for name, damage in DAMAGES.items():
    workdir = root / name.replace(' ', '_')
    save(workdir, [1, 2])
    if number == 0:
      damage(workdir / 'checkpoints' / '2')
    with hosts.all_or_none('damaging'):
      pass
    found = restore(workdir)
    listed = checkpoint.list_steps(workdir)
    save(workdir, [2])
    report(name, None, [found, listed, restore(workdir)])


def try_errors(root: pathlib.Path, number: int, report: Report) -> None:
  workdir = root / 'good'
  save(workdir, [1, 2])
  for name, (owner, function, error, times) in ERRORS.items():
    for host in (0, 1):
      with contextlib.ExitStack() as stack:
        if number == host:
          stack.enter_context(raising(owner, function, error, times))
        found = restore(workdir)
      report(name, host, [found, checkpoint.list_steps(workdir)])
  # The disk of one process shows less than that of the other.
  if number == 1:
    with mock.patch.object(integrity, 'list_steps', return_value=[1]):
      found = restore(workdir)
  else:
    found = restore(workdir)
  report('listing differs', 1, [found, checkpoint.list_steps(workdir)])
  report('nothing was moved', None, [sorted(p.name for p in workdir.iterdir())])


class Report:
  """What came of each fault, as the lines of a file."""

  def __init__(self, path: pathlib.Path):
    self._file = path.open('w')
    self._start = time.monotonic()

  def __call__(self, name: str, host: int | None, found) -> None:
    print(f'{time.monotonic() - self._start:.1f} s: {name}, {host}', file=sys.stderr)
    self._file.write(json.dumps([name, host, found]) + '\n')
    self._file.flush()


def main(argv: list[str]) -> None:
  port, number, root = argv[1:]
  jax.distributed.initialize(f'localhost:{port}', 2, int(number))
  storage.WAITS_S = (0.05, 0.05)
  # There are many stages, and the two run side by side.
  hosts._TOGETHER_S = 0.1
  hosts._Meeting.find_verdict.__defaults__ = (0.01,)
  report = Report(pathlib.Path(root, f'{number}.jsonl'))
  try_damages(pathlib.Path(root), int(number), report)
  try_errors(pathlib.Path(root), int(number), report)


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
