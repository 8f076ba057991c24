"""One policy on several devices: what each of them has of the weights and of what is remembered.

Owns that choice, by the rules of the config as in training: 'tensor' splits heads and hidden units,
'data' the rows of a pass, which are the branches of guidance or several robots. Encoders and what
is small are whole on every device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax.control import apart
from wam_jax.control import memory as memory_lib
from wam_jax.models import initial


@dataclasses.dataclass(frozen=True)
class Split:
  """The devices of one policy.

  Attributes:
    mesh: the devices.
    rules: which of its axes split which logical axis.
    is_apart: whether the layers are apart, as `apart` has them.
  """

  mesh: Mesh
  rules: sharding.Rules
  is_apart: bool = False

  @property
  def whole(self) -> NamedSharding:
    """Of what every device has all of."""
    return self._place()

  @property
  def platform(self) -> str:
    """Of the devices."""
    with self.activate():
      return sharding.platform()

  @property
  def rows(self) -> int:
    """Number of parts that the rows of a pass are split into."""
    with self.activate():
      return sharding.shards_of('batch')

  def activate(self) -> contextlib.AbstractContextManager[None]:
    """While active, what is traced is split so."""
    return sharding.activate(self.mesh, self.rules)

  def params(self, model: cfg.ModelConfig) -> Any:
    """Shapes with shardings of a model's parameters.

    Raises:
      ValueError: the mesh does not divide one of them.
    """
    boxed = jax.eval_shape(lambda key: initial.init(model, key), jax.random.key(0))
    return jax.tree.map(
      lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
      nn.unbox(boxed),
      sharding.state_shardings(boxed, self.mesh, self.rules),
    )

  def check_rows(self, robots: int, branches: int) -> None:
    """
    Raises:
      ValueError: the rows of a pass are not as many for each device.
    """
    rows = robots * branches
    if rows % self.rows:
      raise ValueError(
        f"'data={self.rows}' of sample.mesh (--mesh) splits the rows of a pass, {robots} robots "
        f'times {branches} branches of guidance = {rows}: take a divisor of {rows}, robots that it '
        "divides, or sample.guidance_scale above 1 for two branches; 'tensor' splits one robot."
      )

  def _place(self, *names: str | None) -> NamedSharding:
    return NamedSharding(self.mesh, sharding.spec(self.mesh, self.rules, *names))

  def memory(self) -> memory_lib.Memory:
    """Shardings of what is remembered, one for each part of it."""
    # [L, G, N, ...]: a device keeps the keys and values of its heads, as it computes them.
    heads = self._place('layers', 'batch', 'act_heads')
    prompt = self._place('batch', 'act_heads') if self.is_apart else heads
    rows = self._place('batch')
    return memory_lib.describe(heads=heads, prompt=prompt, rows=rows, other=self.whole)


def make(config: cfg.TrainConfig, devices: Sequence[Any] | None = None) -> Split | None:
  """The split that `config.sample.mesh` names, over the first of `devices`; None for one device.

  Raises:
    ValueError: there are not so many, or the model is not divided by them.
  """
  sizes = cfg.read_mesh(config.sample.mesh)
  if not sizes:
    return None
  devices = list(jax.devices() if devices is None else devices)
  needed = math.prod(sizes.values())
  if needed > len(devices):
    raise ValueError(
      f'sample.mesh={",".join(config.sample.mesh)} (--mesh) needs {needed} devices; there '
      f'{"is" if len(devices) == 1 else "are"} {len(devices)}.'
    )
  # All axes that rules may name.
  every = {axis: sizes.get(axis, 1) for axis in sharding.AXES}
  mesh = sharding.make_mesh(every, devices[:needed])
  # Rows are checked where they are known.
  rowless = dataclasses.replace(config, batch_size=needed, accumulate=1)
  if problems := sharding.list_problems(rowless, mesh):
    raise ValueError(
      f'sample.mesh={",".join(config.sample.mesh)} (--mesh) does not divide the model:\n  '
      + '\n  '.join(problems)
    )
  return Split(mesh, config.rules, apart.suits(config.model, mesh.devices.flat[0].platform))
