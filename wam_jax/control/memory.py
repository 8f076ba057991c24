"""What a policy keeps of an episode: arrays on the device, and what the host counts beside them.

Owns what it is, not how it changes: that is of `programs` on the device, of `policy` on the host.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax

from wam_jax import types
from wam_jax.control import checks
from wam_jax.models import attention
from wam_jax.models import encoders
from wam_jax.models import wam


@flax.struct.dataclass(kw_only=True)
class Eyes:
  """What `observe` works on.

  Attributes:
    stream: where the video tokenizer goes on.
    latents_BFHWC: latents of the chunk that is being observed.
  """

  stream: encoders.Stream
  latents_BFHWC: jax.Array


@flax.struct.dataclass(kw_only=True)
class Memory:
  """What is remembered on the device within an episode. With guidance, G = 2 B: the prompt's rows,
  then the negative ones.

  Attributes:
    cache: keys and values of observed frames, [L, G, N, S, K], and room for a chunk that is not.
    text_GPC: embedded prompts.
    prompt: what `WorldActionModel.prompt_kv` makes of them; projected once, at reset, or with an
      image encoder at each anchor.
    clean_BFHWC: latents of the frames in the cache, and room for one more chunk.
    condition_BFHWC: what the anchor frame says about every latent frame, or None.
    embodiment_B, action_mask_BAU: those of the `Task`.
    key: random key; each chunk splits it.
    evaluations: int32, with `sample.reuse` 'cosine' the passes that the last chunk took.
  """

  cache: attention.KVCache
  text_GPC: jax.Array
  prompt: wam.PromptKV
  clean_BFHWC: jax.Array
  condition_BFHWC: jax.Array | None
  embodiment_B: types.Array
  action_mask_BAU: types.Array
  key: jax.Array
  evaluations: jax.Array


def describe(*, heads: Any, prompt: Any, rows: Any, other: Any) -> Memory:
  """Something about each part of a memory in its place, such as where it lies.

  Args:
    heads: about keys and values of the cache.
    prompt: about those of the prompt.
    rows: about what else has the rows of a pass.
    other: about the rest.
  """
  return Memory(
    cache=attention.KVCache(k=heads, v=heads, frames=other, sink_k=heads),
    text_GPC=rows,
    prompt=wam.PromptKV(layers=prompt, mean_BD=rows),
    clean_BFHWC=other,
    condition_BFHWC=other,
    embodiment_B=other,
    action_mask_BAU=other,
    key=other,
    evaluations=other,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyState:
  """An episode under way: what lies on the device, and what the host counts.

  Each call gives a new one and consumes the arrays of the old one.

  Attributes:
    memory, eyes: arrays on the device.
    frames: number of latent frames in the cache; 0 before the first anchor.
    waiting: number of observed latent frames that are not in it yet.
    begins: whether the frame in it is an anchor that was not acted on yet.
    owed: whether what was last committed was foreseen, not seen (`control.lookahead`).
    frame: what observed frames look like.
  """

  memory: Memory
  eyes: Eyes
  frame: checks.Frame
  frames: int = 0
  waiting: int = 0
  begins: bool = False
  owed: bool = False

  def check_there(self) -> None:
    """
    Raises:
      ValueError: its arrays are gone.
    """
    if self.memory.clean_BFHWC.is_deleted() or self.eyes.latents_BFHWC.is_deleted():
      raise ValueError(
        'This state is gone: each call gives a new one in its place, and a call that fails on the '
        'device takes it along; reset begins an episode anew.'
      )

  @property
  def is_at_anchor(self) -> bool:
    """Whether the next chunk follows the anchor alone, so that nothing is to be committed."""
    return self.begins and not self.waiting


class Asked(NamedTuple):
  """What a chunk is asked for with.

  Attributes:
    proprio_BX: normalized states, now.
    noise: (video, action) that it is made of; None where the state's key draws it.
    prefix: the actions that it begins with whatever comes; None where the model has no overlap.
  """

  proprio_BX: types.Array
  noise: tuple[types.Array, types.Array] | None = None
  prefix: types.Prefix | None = None
