"""`config.sample`: denoising at control time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from wam_jax.config.choices import check_choices
from wam_jax.config.choices import Dtype
from wam_jax.config.flow import FlowConfig
from wam_jax.config.model import ModelConfig
from wam_jax.config.ranges import check_above_0
from wam_jax.config.ranges import check_shares

# Tokens of a chunk are too few to be split, and whole weights are not sent around for each of them.
_AXES = ('tensor', 'data')


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Denoising at control time. The released policy: solver 'unipc', 16 steps, guidance 5, the rest
  as said below.

  Attributes:
    mode: 'joint' (video and action together to sigma 0), 'flash' (the video stops at
      `video_final_sigma`; what is shown of it is the clean video that its last step predicts) or
      'act_only' (actions alone, no future video; for weights trained with `flow.video_hidden`).
    solver: 'euler' or 'unipc'.
    steps: of the solver per chunk.
    shift: warp of the sampling levels.
    video_final_sigma: where the video stops in `flash`.
    action_steps: in `flash`, steps that the actions take against the video of its last step, which
      is run once; with one step of the video that is noise. 0: video and actions take `steps`
      together. In `act_only`, 0 for `steps`.
    action_shift: warp of the levels of steps that the actions take alone. Above 1 fewer steps are
      left to choose between plans.
    approximate_kept_video: take `action_steps` with weights whose video sees the actions, too: it
      is kept as the first step left it, where it would have followed the actions.
    guidance_scale: of the video's velocity, `sampler.guide`; 1 for none.
    negative_prompt: what guidance moves away from.
    evaluate_steps: steps at which the network runs, () for all; the others use its last velocities
      again. Released, of 16: 0, 1, 2, 6, 10, 13, 14, 15.
    reuse: which steps use the last velocities again: 'steps', all but `evaluate_steps`, or
      'cosine', after two nearly equal velocities of the video (reference,
      `DYNAMIC_CACHE_SCHEDULE`): then the time of a chunk varies.
    integer_timesteps: the network is told floor(1000 sigma) / 1000 (reference: yes).
    same_noise: every call starts from the same noise (reference: yes).
    observed: 'stream' encodes what is observed as one video since the anchor, 'fresh' each chunk as
      a video of its own (reference).
    history: what happens when `model.max_chunks` chunks are full: 'reset' starts over with the
      newest frame (reference), 'sliding' keeps frame 0 and drops the oldest chunk, for ever.
      'window' starts over at each call, with the frame of a chunk ago and those since: calls may
      come at any control step, as they do where a robot goes on while it waits.
    precision: dtype of the computation, 'model' for `model.dtype`. 'int8' keeps the kernels that
      `quantized` names as one byte a number and multiplies in bfloat16; 'w8a8' (int8) and 'fp8'
      (float8_e4m3fn) round the inputs of these products, too, token by token, and multiply bytes.
      All else is bfloat16.
    quantized: patterns of the modules whose kernels are quantized, as 'blocks/ffn'; every kernel of
      the layers by default. Attention itself never is.
    anchor: the frame of a call that a new anchor is: the 'newest', or as the 'reference' has it,
      which takes the oldest of a whole chunk (`Policy.step`). Agent and server, whose newest frame
      is now, take that.
    mesh: devices that one policy is split over, () for one: 'tensor=N' splits heads and hidden
      units, 'data=N' the rows of a pass, which are the branches of guidance or several robots.
  """

  mode: Literal['joint', 'flash', 'act_only'] = 'joint'
  solver: Literal['euler', 'unipc'] = 'euler'
  steps: int = 4
  shift: float = 5.0  # As in training: the solver meets the levels that training met most.
  video_final_sigma: float = 0.8  # DreamZero `video_inference_final_noise`.
  action_steps: int = 0
  action_shift: float = 1.0
  approximate_kept_video: bool = False
  guidance_scale: float = 1.0
  negative_prompt: str = ''
  evaluate_steps: tuple[int, ...] = ()
  reuse: Literal['steps', 'cosine'] = 'steps'
  integer_timesteps: bool = False
  same_noise: bool = False
  observed: Literal['stream', 'fresh'] = 'stream'
  history: Literal['reset', 'sliding', 'window'] = 'reset'
  precision: Literal['model', 'float32', 'bfloat16', 'int8', 'w8a8', 'fp8'] = 'model'
  quantized: tuple[str, ...] = ('blocks',)
  anchor: Literal['newest', 'reference'] = 'newest'
  mesh: tuple[str, ...] = ()

  def __post_init__(self):
    check_choices(self, 'sample')
    if self.steps < 1:
      raise ValueError(f'sample.steps={self.steps} must be at least 1.')
    check_above_0(self, 'sample', 'shift', 'action_shift')
    check_shares(self, 'sample', 'video_final_sigma')
    self._check_action_steps()
    read_mesh(self.mesh)
    if not 1 <= self.guidance_scale < math.inf:
      raise ValueError(
        f'sample.guidance_scale={self.guidance_scale} must be at least 1; 1 is without guidance.'
      )
    if self.reuse == 'cosine' and (self.evaluate_steps or self.steps_of_actions_alone):
      raise ValueError(
        "sample.reuse='cosine' decides by itself which steps of video and actions together are "
        f'evaluated: set sample.evaluate_steps={self.evaluate_steps} to () and take no '
        f"sample.action_steps={self.action_steps} and no 'act_only'."
      )
    # The first step has no velocities before it that it could use again.
    valid = tuple(sorted({0, *(i for i in self.evaluate_steps if 0 <= i < self.steps)}))
    if self.evaluate_steps and self.evaluate_steps != valid:
      raise ValueError(
        f'sample.evaluate_steps={self.evaluate_steps} must start at 0, rise and stay below '
        f'sample.steps={self.steps}; nearest valid: {valid}.'
      )

  @property
  def steps_of_actions_alone(self) -> int:
    """Steps that the actions take without a new pass of the video; 0 where both go together."""
    return self.action_steps or (self.steps if self.mode == 'act_only' else 0)

  @property
  def keeps_video(self) -> bool:
    """Whether the actions take steps of their own against one pass of the video."""
    return self.mode == 'flash' and self.action_steps > 0

  @property
  def is_guided(self) -> bool:
    """Whether the video is moved away from the negative prompt; in 'act_only' there is none."""
    return self.guidance_scale != 1 and self.mode != 'act_only'

  def _check_action_steps(self):
    given = f'sample.action_steps={self.action_steps}'
    if self.action_steps < 0:
      raise ValueError(f'{given} must be 0, for as many as the video takes, or more.')
    if self.mode == 'joint' and self.action_steps:
      raise ValueError(
        f"{given} needs sample.mode='flash' or 'act_only': in 'joint' the video goes with the "
        'actions, step by step.'
      )
    if self.steps_of_actions_alone and self.evaluate_steps:
      raise ValueError(
        f'sample.evaluate_steps={self.evaluate_steps} are steps of video and actions together; '
        f'with sample.mode={self.mode!r} and {given} set them to ().'
      )


def read_mesh(mesh: Sequence[str]) -> dict[str, int]:
  """Axis name to size, of `sample.mesh`; {} for one device.

  Raises:
    ValueError: it is no list of 'tensor=N' and 'data=N'.
  """
  sizes: dict[str, int] = {}
  for entry in mesh:
    name, _, size = entry.partition('=')
    if name not in _AXES or name in sizes or not size.isdigit() or not int(size):
      raise ValueError(
        f'sample.mesh={",".join(mesh)} (--mesh): {entry!r} must be NAME=N, N at least 1, each NAME '
        f'of {", ".join(_AXES)} once at most, as --mesh=tensor=4 or --mesh=tensor=4,data=2.'
      )
    sizes[name] = int(size)
  return sizes


def override_sampling(sample: SampleConfig, given: Mapping[str, Any]) -> SampleConfig:
  """`sample` with what flags say, where None says nothing. What they replace takes the steps along
  that are its own, unless flags name some.
  """
  given = {key: value for key, value in given.items() if value is not None}
  is_other_count = given.get('steps', sample.steps) != sample.steps
  if is_other_count or given.get('mode') == 'act_only':
    given.setdefault('evaluate_steps', ())
  if given.get('mode') == 'joint':
    given.setdefault('action_steps', 0)
  return dataclasses.replace(sample, **given)


def choose_dtype(model: ModelConfig, sample: SampleConfig) -> ModelConfig:
  """`model` in the dtype that it computes in with `sample.precision`."""
  if sample.precision == 'model':
    return model
  dtype: Dtype = 'float32' if sample.precision == 'float32' else 'bfloat16'
  return dataclasses.replace(model, dtype=dtype)


def check_sampling(model: ModelConfig, flow: FlowConfig, sample: SampleConfig) -> None:
  """Raises ValueError where a model cannot be sampled so, or was not trained for it."""
  looks_back = sample.history != 'reset'
  if looks_back and (model.history_rule != 'chunk' or model.max_chunks < 2):
    raise ValueError(
      f"sample.history={sample.history!r} needs model.history_rule='chunk', not "
      f'{model.history_rule!r}, and room for the chunk just seen and the next one: '
      f'model.max_chunks of at least 2, not {model.max_chunks}. '
      "Set sample.history='reset'."
    )
  if sample.keeps_video and model.video_sees == 'all':
    if not sample.approximate_kept_video:
      raise ValueError(
        f'sample.action_steps={sample.action_steps} keeps the keys and values of one pass of a '
        "chunk's video; with model.video_sees='all' they follow the actions at every step. Train "
        "with config.model.video_sees='video', or take it for an approximation, whose error is "
        'measured: sample.approximate_kept_video, --approximate_kept_video of wam_jax.evaluate.'
      )
    if sample.steps > 1:
      raise ValueError(
        'sample.approximate_kept_video is for one step of the video, not for '
        f'sample.steps={sample.steps}.'
      )
  if sample.mode == 'act_only' and not flow.video_hidden:
    raise ValueError(
      "sample.mode='act_only' shows the actions no future video, which weights of "
      'flow.video_hidden=0 never met in training; train with config.flow.video_hidden=0.2, or take '
      "sample.mode='flash' with sample.action_steps."
    )


def list_untried(sample: SampleConfig) -> list[str]:
  """What no weights are trained for, of what is asked of them, a sentence each."""
  if sample.history != 'sliding':
    return []
  return [
    "sample.history='sliding' shows the first frame of the episode beside the newest chunks, where "
    "training shows the frame before them: weights may do far worse than with 'reset' or 'window' "
    '(docs/control.md).'
  ]


def check_weights(flow: FlowConfig, sample: SampleConfig) -> None:
  """Raises ValueError where training would give no weight to the one level that is sampled from."""
  steps = sample.steps_of_actions_alone if sample.mode == 'act_only' else sample.steps
  if flow.weighting == 'bump' and steps == 1:
    raise ValueError(
      "flow.weighting='bump' is 0 at noise level 1, the only one that the video or the actions "
      f'meet with sample.mode={sample.mode!r} and one step: training would count nothing of it. '
      "Set config.flow.weighting='uniform', or more steps."
    )
