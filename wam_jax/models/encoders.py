"""The frozen encoders around the transformer, behind one interface: video, first image, text.

Which ones a model has is its config's business; nothing else asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.models import image
from wam_jax.models import text
from wam_jax.models import tokenizer
from wam_jax.models import vae

Stream = Any


@flax.struct.dataclass
class Encoders:
  """Frozen parameters and how to use them; a pytree.

  Frames are [B, R, I, J, 3], uint8 [0, 255] or float32 [-1, 1]; latents [B, F, H, W, C] float32.

  Attributes:
    tokenizer: `PatchTokenizer` or `WanVAE`.
    text: `UMT5`, or None where the text encoder is trained with the model.
    image: `ClipVision` or None.
    config: config of the model that they stand around.
  """

  tokenizer: Any
  text: Any
  image: Any
  config: cfg.ModelConfig = flax.struct.field(pytree_node=False)

  def encode(self, frames_BRIJ3: jax.Array) -> jax.Array:
    """Latents of a whole video; its first frame is encoded alone."""
    return self.tokenizer.encode(self._resize(frames_BRIJ3))

  def encode_start(self, frame_B1IJ3: jax.Array) -> tuple[jax.Array, Stream]:
    """(latents of a video's first frame, the stream to go on with)."""
    return self.tokenizer.encode_start(self._resize(frame_B1IJ3))

  def encode_more(self, stream: Stream, frames_BRIJ3: jax.Array) -> tuple[jax.Array, Stream]:
    """(latents, stream) of the frames that follow."""
    return self.tokenizer.encode_more(stream, self._resize(frames_BRIJ3))

  def decode(self, latents_BFHWC: jax.Array) -> jax.Array:
    """Frames of a whole video, float32 in [-1, 1], at the tokenizer's resolution."""
    return self.tokenizer.decode(latents_BFHWC)

  def encode_condition(self, frame_B1IJ3: jax.Array) -> types.Condition:
    """What the first frame says about a window of the longest length.

    Source: DreamZero policy head `encode_image`.
    """
    c = self.config
    frame = self._resize(tokenizer.to_pixels(frame_B1IJ3))
    image_BIC = self.image.encode(frame[:, 0]) if self.image else None
    if not c.image_condition:
      return types.Condition(image_BIC=image_BIC)
    # The frame, followed by mid-grey (0 in [-1, 1]) for what is to be imagined.
    B, _, *size = frame.shape
    grey = jnp.zeros((B, c.camera_frames(c.max_chunks) - 1, *size), frame.dtype)
    latents = self.tokenizer.encode(jnp.concatenate([frame, grey], 1))
    return types.Condition(latents_BFHWC=with_mask(latents), image_BIC=image_BIC)

  def _resize(self, frames_BRIJ3: jax.Array) -> jax.Array:
    """Frames of the tokenizer's size: bilinear without antialiasing, half-pixel centres.

    Source: DreamZero policy head, `target_video_height`.
    """
    size = self.config.tokenizer.resize
    if not size or frames_BRIJ3.shape[2:4] == tuple(size):
      return frames_BRIJ3
    B, R, _, _, C = frames_BRIJ3.shape
    return jax.image.resize(
      tokenizer.to_pixels(frames_BRIJ3), (B, R, *size, C), 'bilinear', antialias=False
    )


def with_mask(latents_BFHWC: jax.Array) -> jax.Array:
  """Condition latents with the four mask channels before them: 1 on frame 0, 0 after it."""
  shape = (*latents_BFHWC.shape[:-1], 4)
  # A comparison: written into an array it would lie on every device for all samples.
  mask = (jax.lax.broadcasted_iota(jnp.int32, shape, 1) == 0).astype(latents_BFHWC.dtype)
  return jnp.concatenate([mask, latents_BFHWC], -1)


def to_tree(encoders: Encoders) -> dict[str, Any]:
  """Nested dict of arrays for a checkpoint: 'tokenizer' and, where there are any, 'text' and
  'image'.
  """
  parts = {'tokenizer': encoders.tokenizer, 'text': encoders.text, 'image': encoders.image}
  tree = {}
  for name, part in parts.items():
    if part is not None:
      fields = flax.serialization.to_state_dict(part)
      tree[name] = {key: x for key, x in fields.items() if x is not None}
  return tree


def from_tree(tree: Mapping[str, Any], c: cfg.ModelConfig) -> Encoders:
  """Inverse of `to_tree`; leaves may be abstract."""
  t = c.tokenizer
  if t.kind == 'patch':
    video = tokenizer.PatchTokenizer(**tree['tokenizer'], temporal=t.temporal, spatial=t.spatial)
  else:
    video = vae.WanVAE(**tree['tokenizer'], config=t)
  umt5 = clip = None
  if c.text.kind == 'umt5':
    umt5 = text.UMT5(**tree['text'], config=c.text)
  if c.image.kind == 'clip':
    clip = image.ClipVision(**tree['image'], config=c.image)
  return Encoders(tokenizer=video, text=umt5, image=clip, config=c)


class Named(NamedTuple):
  """An array and what it is called.

  Attributes:
    name: its place in the tree, as `jax.tree_util.keystr` writes it.
    shape, dtype: those of the whole array.
    pieces: the array cut along its first axis.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  pieces: Iterable[np.ndarray]


def fingerprint(frozen: Encoders) -> dict[str, str]:
  """A hash of the weights of each frozen encoder, which this process must hold whole."""
  hashes = {}
  for part, tree in to_tree(frozen).items():
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    hashes[part] = hash_arrays(
      Named(jax.tree_util.keystr(path), tuple(x.shape), np.dtype(x.dtype), [np.asarray(x)])
      for path, x in leaves
    )
  return hashes


def hash_arrays(arrays: Iterable[Named]) -> str:
  """Half of the SHA-256 of all names, dtypes, shapes and bytes, in the order of a tree."""
  digest = hashlib.sha256()
  for name, shape, dtype, pieces in arrays:
    digest.update(f'{name} {dtype} {shape}'.encode())
    for piece in pieces:
      # Bytes, because hashes do not take views of bfloat16.
      digest.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
  return digest.hexdigest()[:16]
