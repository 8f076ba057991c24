"""FLOPs of the model by formula: its matrix products and the attention pairs that its masks leave.

A multiplication and an addition are two. What is recomputed for the backward pass does not count,
nor do padding, frozen encoders, the optimizer, and elementwise work (norms, rotations, softmax): 1
to 2 % of a large model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax.models import attention


class Work(NamedTuple):
  """FLOPs of one component for one sample.

  Attributes:
    forward: FLOPs of a forward pass.
    train: FLOPs of a training step, backward included.
  """

  forward: float
  train: float


class _Sequence(NamedTuple):
  """How many of what the model's products run over.

  Attributes:
    video: tokens of video, of which `noisy` are decoded to velocities.
    actions, states: tokens of both.
    groups: noise levels, each of which is embedded once.
    pairs: (query, key) pairs of self-attention in one layer.
  """

  video: int
  noisy: int
  actions: int
  states: int
  groups: int
  pairs: int

  @property
  def tokens(self) -> int:
    return self.video + self.actions + self.states


def training(c: cfg.ModelConfig, tokens_per_frame: int, chunks: int = 0) -> dict[str, Work]:
  """Work by component, for a teacher-forced window; they add up to the model.

  Args:
    tokens_per_frame: rows times columns of a latent frame, in patches.
    chunks: number of chunks of the window; 0 for all that the model is trained on.
  """
  chunks = chunks or c.max_chunks
  layout = training_layout(c, tokens_per_frame, chunks)
  clean, noisy, actions, states = np.bincount(layout.kind, minlength=4).tolist()
  sequence = _Sequence(
    video=clean + noisy,
    noisy=noisy,
    actions=actions,
    states=states,
    groups=int(layout.group.max()) + 1,
    pairs=training_pairs(c, tokens_per_frame, chunks),
  )
  return _components(c, sequence)


def control(c: cfg.ModelConfig, tokens_per_frame: int) -> dict[str, Work]:
  """Work by component, for one denoising of the last chunk of a full window: keys and values of the
  past lie in a cache.

  Only `forward` means anything; the prompt's own keys and values are the episode's, not the
  chunk's.
  """
  video = c.frames_per_chunk * tokens_per_frame
  actions = c.action_horizon
  seen = c.window_frames * tokens_per_frame + actions + 1
  seen_by_video = seen if c.video_sees == 'all' else seen - actions - 1
  seen_by_state = 1 if c.state_rule == 'self' else seen
  sequence = _Sequence(
    video=video,
    noisy=video,
    actions=actions,
    states=1,
    groups=c.frames_per_chunk + actions + 1,
    pairs=video * seen_by_video + actions * seen + seen_by_state,
  )
  once = ('word encoder', 'prompt embedding', 'prompt keys and values')
  return {name: work for name, work in _components(c, sequence).items() if name not in once}


def total(components: dict[str, Work]) -> Work:
  """Sum over all components."""
  return _add(*components.values())


def training_layout(c: cfg.ModelConfig, tokens_per_frame: int, chunks: int = 0) -> masks.Layout:
  """The teacher-forced sequence of `train_step`."""
  chunks = chunks or c.max_chunks
  frames = 1 + chunks * c.frames_per_chunk
  return masks.training_layout(
    clean_frames=frames - c.frames_per_chunk,  # Nothing comes after the last chunk to see it.
    noisy_frames=range(0 if c.predict_first_frame else 1, frames),
    tokens_per_frame=tokens_per_frame,
    frames_per_chunk=c.frames_per_chunk,
    actions_per_chunk=c.action_horizon,
    states_per_chunk=1,
    chunks=chunks,
  )


def training_tokens(c: cfg.ModelConfig, tokens_per_frame: int, chunks: int = 0) -> int:
  """Length of the teacher-forced sequence."""
  return len(training_layout(c, tokens_per_frame, chunks).kind)


def training_pairs(c: cfg.ModelConfig, tokens_per_frame: int, chunks: int = 0) -> int:
  """(query, key) pairs that the training mask leaves, padding of short episodes aside."""
  runs = masks.units(training_layout(c, tokens_per_frame, chunks))
  pairs = masks.area(runs, attention.training_mask(c, runs.layout))
  if c.history_rule == 'chunk':
    return pairs
  # The reference's mask is causal by tokens in clean video after frame 0, which runs cannot say: of
  # the n^2 pairs of such a run, the n (n - 1) / 2 to later tokens are not seen.
  causal = (runs.layout.kind == masks.CLEAN) & (runs.layout.block > 0)
  n = runs.size[causal]
  return pairs - int((n * (n - 1) // 2).sum())


def _components(c: cfg.ModelConfig, s: _Sequence) -> dict[str, Work]:
  D, L = c.dim, c.num_layers
  text = c.text.length
  image = c.image_tokens if c.image_dim else 0
  prompt = text + image
  parts = {
    # Queries, keys, values and output.
    'attention projections': _product(L * s.tokens * 4, D, D),
    'attention': _pairs(L * s.pairs, D),
    # Queries and output; keys and values are the prompt's.
    'prompt attention projections': _product(L * s.tokens * 2, D, D),
    'prompt attention': _pairs(L * s.tokens * prompt, D),
    'prompt keys and values': _product(L * prompt * 2, D, D),
    'feed-forward': _product(L * s.tokens * 2, D, c.mlp_dim),
    'patches': _add(
      _product(s.video, c.patch**2 * c.in_channels, D, first=True),
      _product(s.noisy, D, c.patch**2 * c.tokenizer.channels),
    ),
    'prompt embedding': _add(
      # The gradient goes on into the word encoder, which is trained with the model.
      _product(text, c.text.dim, D, first=c.text.kind != 'word'),
      _product(text, D, D),
      _product(image, c.image_dim, c.image_dim),
      _product(image, c.image_dim, D),
    ),
    'noise levels': _add(
      _product(s.groups, c.freq_dim, D, first=True),
      _product(s.groups, D, D),
      _product(s.groups, D, 6 * D),
    ),
    'actions and states': _action_modules(c, s),
  }
  if c.text.kind == 'word':
    parts['word encoder'] = _word_encoder(c.text)
  return parts


def _action_modules(c: cfg.ModelConfig, s: _Sequence) -> Work:
  D = c.dim
  hidden = c.action_hidden
  encoder = _add(
    _product(s.actions, c.action_dim, D, first=True),
    _product(s.actions, 2 * D, D),  # Beside the sinusoid of its noise level.
    _product(s.actions, D, D),
  )
  decoder = _add(
    _product(s.actions, D, hidden),
    _product(s.actions, hidden, c.action_dim),
  )
  state_encoder = _add(
    _product(s.states, c.proprio_dim, hidden, first=True),
    _product(s.states, hidden, D),
  )
  return _add(encoder, decoder, state_encoder)


def _word_encoder(t: cfg.TextConfig) -> Work:
  # Four projections, and two products with four times the width between them.
  products = _product(t.layers * t.length * (4 + 8), t.dim, t.dim)
  return _add(products, _pairs(t.layers * t.length * t.length, t.dim))


def _product(rows: int, contracted: int, out: int, first: bool = False) -> Work:
  """A linear layer. Its backward pass is two such products; of `first` ones, whose input needs no
  gradient, one.
  """
  forward = 2.0 * rows * contracted * out
  return Work(forward, forward * (2 if first else 3))


def _pairs(pairs: int, width: int) -> Work:
  """Logits and weighted sum of values over all heads; twice as much in the backward pass."""
  return Work(4.0 * pairs * width, 12.0 * pairs * width)


def _add(*parts: Work) -> Work:
  return Work(forward=sum(part.forward for part in parts), train=sum(part.train for part in parts))
