"""`config.flow`: noise levels and loss."""

from __future__ import annotations

import dataclasses
from typing import Literal

from wam_jax.config.choices import check_choices
from wam_jax.config.ranges import check_above_0
from wam_jax.config.ranges import check_at_least_0
from wam_jax.config.ranges import check_shares


@dataclasses.dataclass(frozen=True)
class FlowConfig:
  """Noise levels and loss. `sigma` is 0 for clean, 1 for noise; the schedule has `levels` points.

  Attributes:
    schedule: 'coupled' (one level per chunk for video and action), 'coupled_beta' (the same, drawn
      as the video's of 'decoupled': the reference's `use_high_noise_emphasis`), 'flash' (video eta
      ~ Beta(beta, 1), action uniform, independent; paper, DreamZero-Flash) or 'decoupled' (the
      reference's code for it, `flow.sample_levels`).
    levels: points of the discrete schedule (the reference's 1000 training steps).
    shift: warps uniform levels towards noise, coupled: shift * s / (1 + (shift - 1) * s).
    video_beta: first parameter of the Beta law of all but `coupled` (the reference's code uses 3).
    flash_shift: warp on top of both draws of `flash` (1: none, as the paper; the reference's code
      uses 5).
    video_at_noise: share of chunks whose video is noise alone, level 1; the level of their actions
      is drawn as ever. Control that holds the video at noise meets nothing else.
    video_hidden: share of chunks whose noisy video nobody sees, and whose video counts in no loss:
      what `act_only` meets.
    without_prefix: with `model.action_overlap`, share of chunks that are given no clean actions,
      whatever was drawn: what is seen then is all there is to go by.
    weighting: 'bump' (the reference's bell over timesteps, which is 0 at level 1) or 'uniform'.
    video_weight, action_weight: of the two losses.
    action_mean: action loss averaged over 'real' dimensions and steps only, or over all dimensions,
      'padded' ones too, of the chunks that a window has (reference).
    mask_padded_noise: feed zeros, not noise, in padded action dimensions (reference: noise).
  """

  schedule: Literal['coupled', 'coupled_beta', 'flash', 'decoupled'] = 'coupled'
  levels: int = 1000
  shift: float = 5.0  # The mean level of uniform draws is then 0.75, not 0.5.
  video_beta: float = 7.0  # Paper, DreamZero-Flash: the mean level is 7/8.
  flash_shift: float = 1.0
  video_at_noise: float = 0.0
  video_hidden: float = 0.0
  without_prefix: float = 0.0
  weighting: Literal['bump', 'uniform'] = 'bump'
  video_weight: float = 1.0
  action_weight: float = 1.0
  # With 'padded' the fewer dimensions a robot has, the less its actions weigh.
  action_mean: Literal['real', 'padded'] = 'real'
  mask_padded_noise: bool = True

  def __post_init__(self):
    check_choices(self, 'flow')
    if self.levels < 1:
      raise ValueError(f'flow.levels={self.levels} must be at least 1; the reference has 1000.')
    check_above_0(self, 'flow', 'shift', 'flash_shift', 'video_beta')
    check_shares(self, 'flow', 'video_at_noise', 'video_hidden', 'without_prefix')
    check_at_least_0(self, 'flow', 'video_weight', 'action_weight')
