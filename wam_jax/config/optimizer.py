"""`config.optimizer`: how weights are updated."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up, a constant stretch and a cosine decay.

  Attributes:
    learning_rate: peak.
    warmup_steps: linear from 0.
    hold_fraction: share of the steps, after warm-up, at the peak before the cosine begins.
    decay_steps: the step where the cosine reaches 0, for a run in parts; 0 for config.steps.
    b1, b2, adam_eps, weight_decay: of AdamW; matrices only are decayed.
    clip_norm: of the global gradient.
    ema_decay: of the averaged weights that evaluation and serving use; 0 for none.
  """

  # AdamW, weight decay and clipping are DreamZero's (its conf.yaml and launch scripts).
  learning_rate: float = 1e-5
  warmup_steps: int = 100
  hold_fraction: float = 0.0
  decay_steps: int = 0
  b1: float = 0.95
  b2: float = 0.999
  adam_eps: float = 1e-8
  weight_decay: float = 1e-5
  clip_norm: float = 1.0
  ema_decay: float = 0.0
