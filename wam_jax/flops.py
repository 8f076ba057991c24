"""FLOPs of the model by formula: its matrix products and the attention pairs that its masks leave.

A multiplication and an addition are two. What is recomputed for the backward pass does not count,
nor do padding, frozen encoders, the optimizer, and elementwise work (norms, rotations, softmax): 1
to 2 % of a large model.
"""

from __future__ import annotations

from typing import NamedTuple

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax.models import attention


class Work(NamedTuple):
  """FLOPs of one component for one sample: of a forward pass, and of a training step, backward
  included.
  """

  forward: float
  train: float


def training(c: cfg.ModelConfig, tokens_per_frame: int, chunks: int = 0) -> dict[str, Work]:
  """By component, for a teacher-forced window; they add up to the model.

  Args:
    tokens_per_frame: rows times columns of a latent frame, in patches.
    chunks: of the window; by default all that the model is trained on.
  """
  Q = chunks or c.max_chunks
  layout = training_layout(c, tokens_per_frame, Q)
  clean, noisy, actions, states = (int((layout.kind == kind).sum()) for kind in range(4))
  groups = int(layout.group.max()) + 1
  return _components(
    c, clean + noisy, noisy, actions, states, groups, training_pairs(c, tokens_per_frame, Q)
  )


def control(c: cfg.ModelConfig, tokens_per_frame: int) -> dict[str, Work]:
  """By component, for one denoising of the last chunk of a full window: keys and values of the past
  lie in a cache.

  Only `forward` means anything; the prompt's own keys and values are the episode's, not the
  chunk's.
  """
  video, A = c.frames_per_chunk * tokens_per_frame, c.actions_per_chunk
  seen = c.window_frames * tokens_per_frame + A + 1
  tokens = video + A + 1
  own = 1 if c.state_rule == 'self' else seen
  parts = _components(c, video, video, A, 1, c.frames_per_chunk + A + 1, (tokens - 1) * seen + own)
  once = ('word encoder', 'prompt embedding', 'prompt keys and values')
  return {name: work for name, work in parts.items() if name not in once}


def total(components: dict[str, Work]) -> Work:
  """Of all components."""
  return Work(
    sum(w.forward for w in components.values()), sum(w.train for w in components.values())
  )


def training_layout(c: cfg.ModelConfig, tokens_per_frame: int, chunks: int = 0) -> masks.Layout:
  """The teacher-forced sequence of `train_step`."""
  chunks = chunks or c.max_chunks
  frames = 1 + chunks * c.frames_per_chunk
  return masks.training_layout(
    frames - c.frames_per_chunk,
    range(0 if c.predict_first_frame else 1, frames),
    tokens_per_frame,
    c.frames_per_chunk,
    c.actions_per_chunk,
    1,
    chunks,
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
  later = runs.size[
    (runs.layout.kind == masks.CLEAN) & (runs.layout.block > 0)
  ]  # Each sees itself up to the query.
  return pairs - int((later * (later - 1) // 2).sum())


def _components(c, video, noisy, actions, states, groups, pairs) -> dict[str, Work]:
  D, L, P, I = c.dim, c.num_layers, c.text.length, c.image_tokens if c.image_dim else 0
  tokens = video + actions + states
  parts = {
    'attention projections': _product(L * tokens * 4, D, D),
    'attention': _pairs(L * pairs, D),
    'prompt attention projections': _product(L * tokens * 2, D, D),
    'prompt attention': _pairs(L * tokens * (P + I), D),
    'prompt keys and values': _product(L * (P + I) * 2, D, D),
    'feed-forward': _product(L * tokens * 2, D, c.mlp_dim),
    'patches': _add(
      _product(video, c.patch**2 * c.in_channels, D, first=True),
      _product(noisy, D, c.patch**2 * c.tokenizer.channels),
    ),
    'prompt embedding': _add(
      _product(P, c.text.dim, D, first=c.text.kind != 'word'),
      _product(P, D, D),
      _product(I, c.image_dim, c.image_dim),
      _product(I, c.image_dim, D),
    ),
    'noise levels': _add(
      _product(groups, c.freq_dim, D, first=True),
      _product(groups, D, D),
      _product(groups, D, 6 * D),
    ),
    'actions and states': _add(
      _product(actions, c.action_dim, D, first=True),
      _product(actions, 2 * D, D),
      _product(actions, D, D),
      _product(actions, D, c.action_hidden),
      _product(actions, c.action_hidden, c.action_dim),
      _product(states, c.proprio_dim, c.action_hidden, first=True),
      _product(states, c.action_hidden, D),
    ),
  }
  if c.text.kind == 'word':
    W = c.text.dim
    parts['word encoder'] = _add(
      _product(c.text.layers * P * (4 + 8), W, W), _pairs(c.text.layers * P * P, W)
    )
  return parts


def _product(rows: int, contracted: int, out: int, first: bool = False) -> Work:
  """A linear layer; `first` ones need no gradient of their input."""
  forward = 2.0 * rows * contracted * out
  return Work(forward, forward * (2 if first else 3))


def _pairs(pairs: int, width: int) -> Work:
  """Logits and weighted sum of values over all heads."""
  return Work(4.0 * pairs * width, 12.0 * pairs * width)


def _add(*parts: Work) -> Work:
  return Work(sum(p.forward for p in parts), sum(p.train for p in parts))
