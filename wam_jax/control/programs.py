"""The programs of closed-loop control: few, every shape static, what they remember donated.

  observe   encodes the frames of one latent frame as they arrive, so that little is left to do when
            the robot waits for actions
  anchor    the newest frame becomes frame 0 of an empty cache, as in the reference's hard reset
  begin     denoises the first chunk after an anchor
  act       commits what was really observed (instead of what was predicted) to the key/value cache
            and denoises the next chunk against it
  imagine   decodes what was predicted; no robot waits for it

Owns what each computes from arrays and how it is compiled. None of them has a branch around the
cache, which XLA would copy: which one is next is of `policy`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import types
from wam_jax.control import denoising
from wam_jax.control import memory as memory_lib
from wam_jax.control import places
from wam_jax.control import split as split_lib
from wam_jax.models import attention
from wam_jax.models import encoders

Eyes = memory_lib.Eyes
Memory = memory_lib.Memory
Asked = memory_lib.Asked

# What a program takes the place of.
_DONATED = {
  'observe': ('eyes',),
  'restart': ('eyes',),
  'anchor': ('memory', 'eyes'),
  'begin': ('memory',),
  'act': ('memory',),
  'amend': ('memory',),
}
# What a program gives, as `places.place` reads it; of one that is not named nothing is split.
_GIVEN = {
  'reset': ('memory', 'eyes'),
  'anchor': ('memory', 'eyes'),
  'begin': ('actions', 'video', 'memory'),
  'act': ('actions', 'video', 'memory'),
  'amend': 'memory',
}


class Programs(denoising.Denoiser):
  """Compiled programs for one model, batch size and way of sampling.

  Attributes:
    split: the devices that they run on; None for one.
    order: of the axes of the cache, as `places` has it.
    programs: each by its name, compiled at its first call.
    traced: how often each program was traced.
  """

  def __init__(
    self,
    model: cfg.ModelConfig,
    sample: cfg.SampleConfig,
    flow: cfg.FlowConfig,
    *,
    recompute: bool = False,
    split: split_lib.Split | None = None,
  ):
    """`recompute` is that of `Denoiser`."""
    super().__init__(model, sample, flow, recompute=recompute)
    self.split = split
    with self._on_devices():
      self.order = places.choose_order(model, self.branches)
    self.traced: collections.Counter[str] = collections.Counter()
    names = ('reset', 'observe', 'restart', 'anchor', 'begin', 'act', 'imagine')
    self.programs = {name: self.compiled(name) for name in names}

  @property
  def traces(self) -> int:
    """How often the program was traced that was traced most often; it must stay at 1, because a
    second compilation would stall a robot.
    """
    return max(self.traced.values(), default=0)

  def compiled(self, name: str, **options: Any) -> Any:
    """A program, compiled at its first call and counted in `traced`.

    Args:
      options: of `jax.jit`, as shardings and layouts.
    """
    donated, given = _DONATED.get(name, ()), _GIVEN.get(name, '')
    return self.count(name, self.function(name), donated, given, **options)

  def function(self, name: str) -> Any:
    """What a program computes, for others to trace."""
    return getattr(self, f'_{name}')

  def count(
    self,
    name: str,
    function: Any,
    donated: Sequence[str],
    given: Any = '',
    **options: Any,
  ) -> Any:
    """`function` as a program, compiled at its first call and counted in `traced` by this name.

    Args:
      donated: names of what it takes the place of.
      given: what it gives, as `places.place` reads it.
    """
    # What takes the place of something must lie as it does, at every call.
    outputs = places.place(given, self.split, self.order)
    if outputs is not None:
      options = {'out_shardings': outputs} | options

    @functools.wraps(function)
    def traced(*args):
      # Python runs here only while JAX traces.
      self.traced[name] += 1
      with self._on_devices():
        return function(*args)

    # Also what a program only passes on takes its own place again.
    return jax.jit(traced, donate_argnames=donated, keep_unused=True, **options)

  def _on_devices(self) -> contextlib.AbstractContextManager[None]:
    """While active, what is traced is split over the devices of the policy."""
    return contextlib.nullcontext() if self.split is None else self.split.activate()

  def _reset(
    self, params, frozen: encoders.Encoders, task: types.Task, frame_BIJ3, key
  ) -> tuple[Memory, Eyes]:
    text_GPC = self._embed_text(params, frozen, task)

    # What the first anchor will fill has its shape from now on, so that programs compile once.
    latents, stream = _zeros(frozen.encode_start, frame_BIJ3[:, None])
    condition = _zeros(_encode_condition, frozen, frame_BIJ3[:, None])
    if condition.image_BIC is None:
      prompt = self._prompt(params, text_GPC, None)
    else:
      prompt = _zeros(self._prompt, params, text_GPC, condition.image_BIC)

    B, _, *latent = latents.shape
    memory = self.forget(
      text_GPC=text_GPC,
      prompt=prompt,
      condition_BFHWC=condition.latents_BFHWC,
      embodiment_B=task.embodiment_B,
      action_mask_BAU=task.action_mask_BAU,
      latent=tuple(latent),
      key=key,
    )
    seen = jnp.zeros((B, self.cfg.frames_per_chunk, *latent), latents.dtype)
    return memory, Eyes(stream=stream, latents_BFHWC=seen)

  def forget(self, *, latent: tuple[int, ...], **known: Any) -> Memory:
    """Memory of an episode of which nothing was seen.

    Args:
      latent: height, width and channels of a latent frame.
      known: the other attributes of `Memory`, those that count frames aside.
    """
    c = self.cfg
    H, W, _ = latent
    tokens = (H // c.patch) * (W // c.patch)
    B = len(known['embodiment_B'])
    frames = 1 + c.max_chunks * c.frames_per_chunk
    cache = attention.KVCache.empty(
      layers=c.num_layers,
      batch=self.branches * B,
      heads=c.num_heads,
      slots=frames * tokens,
      head_dim=c.head_dim,
      dtype=jnp.dtype(c.dtype),
      sink=tokens if self.slides else 0,
    )
    return Memory(
      cache=cache,
      clean_BFHWC=jnp.zeros((B, frames, *latent)),
      evaluations=jnp.int32(0),
      **known,
    )

  def _observe(self, frozen: encoders.Encoders, eyes: Eyes, frames_BRIJ3, index) -> Eyes:
    latent, stream = frozen.encode_more(eyes.stream, frames_BRIJ3)
    seen = jax.lax.dynamic_update_slice_in_dim(eyes.latents_BFHWC, latent, index, axis=1)
    return Eyes(stream=stream, latents_BFHWC=seen)

  def _restart(self, frozen: encoders.Encoders, eyes: Eyes, frame_B1IJ3) -> Eyes:
    """The stream of a video that begins with this frame."""
    _, stream = frozen.encode_start(frame_B1IJ3)
    return dataclasses.replace(eyes, stream=stream)

  def _anchor(
    self, params, frozen: encoders.Encoders, memory: Memory, eyes: Eyes, frame_B1IJ3
  ) -> tuple[Memory, Eyes]:
    condition = _encode_condition(frozen, frame_B1IJ3)
    latents, stream = frozen.encode_start(frame_B1IJ3)
    if condition.image_BIC is not None:
      memory = dataclasses.replace(
        memory, prompt=self._prompt(params, memory.text_GPC, condition.image_BIC)
      )
    memory = dataclasses.replace(memory, condition_BFHWC=condition.latents_BFHWC)
    memory = self._commit(params, memory, latents, 0)
    clean = denoising.put(memory.clean_BFHWC, latents, 0)
    memory = dataclasses.replace(memory, clean_BFHWC=clean)
    return memory, dataclasses.replace(eyes, stream=stream)

  def _begin(self, params, memory: Memory, asked: Asked):
    return self._predict(params, memory, self._chunk(memory, asked, 1), asked.noise)

  def _act(self, params, memory: Memory, latents_BFHWC, start, asked: Asked):
    chunk_start = start + self.cfg.frames_per_chunk
    shift = self._shift(chunk_start + self.cfg.frames_per_chunk)
    # By how much the window has slid since the last chunk.
    kept = denoising.roll(memory.clean_BFHWC, self._shift(chunk_start) - shift)
    memory = dataclasses.replace(
      memory, clean_BFHWC=denoising.put(kept, latents_BFHWC, start - shift)
    )
    chunk = self._chunk(memory, asked, chunk_start)._replace(seen_BFHWC=latents_BFHWC)
    return self._predict(params, memory, chunk, asked.noise)

  def _amend(self, params, memory: Memory, latents_BFHWC, start) -> Memory:
    """The frames of the last chunk but one are these, whatever was committed of them: in the cache,
    and for `imagine`. What the window is does not change.
    """
    F = self.cfg.frames_per_chunk
    memory = self._commit(params, memory, latents_BFHWC, start, ahead=F)
    clean = denoising.put(memory.clean_BFHWC, latents_BFHWC, start - self._shift(start + 2 * F))
    return dataclasses.replace(memory, clean_BFHWC=clean)

  def _chunk(self, memory: Memory, asked: Asked, start) -> denoising.Chunk:
    body = types.Body(
      proprio_BSX=asked.proprio_BX[:, None],
      embodiment_B=memory.embodiment_B,
      valid_BA=jnp.any(memory.action_mask_BAU, axis=-1),
    )
    prefix = asked.prefix
    if prefix is not None:
      # As in training, what a robot does not have is 0.
      D = prefix.action_BDU.shape[1]
      given_BDU = prefix.action_BDU * memory.action_mask_BAU[:, :D]
      prefix = types.Prefix(action_BDU=given_BDU, length_B=jnp.asarray(prefix.length_B))
    return denoising.Chunk(body, start, prefix)

  def _imagine(self, frozen: encoders.Encoders, clean_BFHWC, latents_BFHWC, start) -> jax.Array:
    per_latent = self.cfg.tokenizer.temporal
    latents = denoising.put(clean_BFHWC, latents_BFHWC, start)
    video = frozen.decode(latents)
    # The first latent is of one frame, every other of `per_latent`.
    first = 1 + (start - 1) * per_latent
    size = latents_BFHWC.shape[1] * per_latent
    return jax.lax.dynamic_slice_in_dim(video, first, size, axis=1)

  def _embed_text(self, params, frozen: encoders.Encoders, task: types.Task) -> jax.Array:
    """[G, P, C] of the prompts, with guidance followed by the negative ones."""
    negative_BP = task.negative_ids_BP
    guided = self.branches == 2
    scale = f'sample.guidance_scale={self.sample.guidance_scale}'
    if guided and negative_BP is None:
      raise ValueError(f'{scale} needs negative prompts.')
    if negative_BP is not None and not guided:
      mode = f'sample.mode={self.sample.mode!r}'
      raise ValueError(f'{scale} with {mode} takes no negative prompts.')
    ids_GP = task.prompt_ids_BP
    if negative_BP is not None:
      ids_GP = jnp.concatenate([ids_GP, negative_BP])
    if frozen.text is None:
      return self._apply(params, self._wam.encode_text, ids_GP)
    return frozen.text.encode(ids_GP)


def _encode_condition(frozen: encoders.Encoders, frame_B1IJ3) -> types.Condition:
  # Frames are whole on every device: a robot has one for both branches of guidance.
  with sharding.inactive():
    return frozen.encode_condition(frame_B1IJ3)


def _zeros(function, *args):
  """Zeros like what `function(*args)` gives, without running it."""
  shapes = jax.eval_shape(function, *args)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
