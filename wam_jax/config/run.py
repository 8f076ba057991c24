"""`config` itself: the whole run, with every group of keys."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping

from wam_jax.config.choices import check_choices
from wam_jax.config.choices import Dtype
from wam_jax.config.data import DataConfig
from wam_jax.config.data import is_table_name
from wam_jax.config.evaluation import EvalConfig
from wam_jax.config.flow import FlowConfig
from wam_jax.config.model import ModelConfig
from wam_jax.config.optimizer import OptimizerConfig
from wam_jax.config.sample import check_sampling
from wam_jax.config.sample import SampleConfig

DEFAULT_RULES: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
  {
    # Parameters; 'frozen' are those of the encoders. 'embed' is an axis of nearly every kernel, so
    # that this rule alone divides the memory of the state.
    'layers': (),
    'embed': ('fsdp',),
    'embed_out': (),  # Stands beside 'embed'; a mesh axis can split only one axis of an array.
    'heads': ('tensor',),
    'head_dim': (),
    'mlp': ('tensor',),
    'channels': (),
    'vocab': (),
    'embodiment': (),
    'norm': (),
    'rank': (),
    'frozen': ('fsdp',),
    # Activations.
    'batch': ('slice', 'data', 'fsdp'),  # Devices that share the weights have different samples.
    'tokens': ('seq',),
    'act_embed': (),
    'act_heads': ('tensor',),
    'act_mlp': ('tensor',),
  }
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The whole run.

  Attributes:
    name: shown in logs; part of what makes a workdir belong to a config.
    seed: of parameters and noise.
    steps: optimizer steps.
    batch_size: samples per step over all hosts.
    accumulate: parts that a batch is computed in, one after the other, to save memory; the update
      is the same.
    log_every: steps between lines of metrics.jsonl.
    save_every, keep: steps between checkpoints and how many of the newest stay.
    keep_every: checkpoints at multiples of this many steps stay for good; 0 for none.
    eval_every, eval_batches: steps between held-out losses (0 for none), and batches of each.
    init_from: workdir whose EMA weights and encoders this run starts from; '' for scratch.
    encoders_from: workdir whose frozen encoders alone this run uses, where it does not start from
      another.
    trainable: which parameters are trained: 'all', 'lora' (adapters, state encoder, action encoder
      and decoder; set model.lora.rank), or patterns of their paths (`finetuning.split`). The others
      cost no gradient, no optimizer state and no average.
    frozen_dtype: that the others are kept in, 'float32' or 'bfloat16'.
    spike_factor: a loss this many times the median of the last 100 steps is reported with its
      samples, 0 for never.
    stop_on_spike: whether such a step ends the run, with nothing of it saved.
    hang_timeout_s: a step that takes longer, its wait for a batch included, ends the process with
      the stack of every thread, so that a cluster can start it again; 0 for never.
    pause_timeout_s: the same for what else is waited for once the data is open: restoring, the
      first step, which compiles, each evaluation and each save; 0 for never. Needs hang_timeout_s.
    profile: first and last step of a trace for XProf in WORKDIR/profile, () for none.
    compiler_options: NAME=VALUE that the steps are compiled with, beside what `chips.py` has for
      the chip; what is known to be wrong there is refused (`compiler_options`).
    sdc_checks: how many times each step runs again on TPUs, to compare the results and stop where a
      chip computes another one: a run of an hour to try a slice takes 1, for twice the time.
    mesh: axis name to size; one size may be -1 (what is left of the devices). 'slice' is the number
      of TPU slices that the data-centre network joins.
    rules: logical axis name to mesh axes, '' for replicated.
  """

  name: str = 'unnamed'
  seed: int = 0
  steps: int = 1000
  batch_size: int = 32
  accumulate: int = 1
  log_every: int = 50
  save_every: int = 500
  keep: int = 3
  keep_every: int = 0
  eval_every: int = 0
  eval_batches: int = 8
  init_from: str = ''
  encoders_from: str = ''
  trainable: tuple[str, ...] = ('all',)
  frozen_dtype: Dtype = 'float32'
  # Guards are off by default: what is unusual depends on the experiment and on the cluster.
  spike_factor: float = 0.0
  stop_on_spike: bool = False
  hang_timeout_s: float = 0.0
  pause_timeout_s: float = 3600.0
  profile: tuple[int, ...] = ()
  compiler_options: tuple[str, ...] = ()
  sdc_checks: int = 0
  # Every device has its own samples and all of the weights.
  mesh: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {'slice': 1, 'data': -1, 'fsdp': 1, 'seq': 1, 'tensor': 1}
  )
  rules: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=lambda: dict(DEFAULT_RULES)
  )
  model: ModelConfig = ModelConfig()
  flow: FlowConfig = FlowConfig()
  sample: SampleConfig = SampleConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  evaluation: EvalConfig = EvalConfig()

  def __post_init__(self):
    check_choices(self, 'config')
    self._check_counts()
    self._check_trainable()
    # Steps count from 1.
    if self.profile and (len(self.profile) != 2 or not 0 < self.profile[0] <= self.profile[1]):
      raise ValueError(
        f'config.profile={self.profile} must be the first and the last step of the trace, or ().'
      )
    if self.data.statistics_of == 'base' and not self.init_from:
      raise ValueError(
        "config.data.statistics_of='base' needs config.init_from, whose statistics these are."
      )
    robots = len(self.data.embodiments)
    if self.model.num_embodiments < robots:
      raise ValueError(
        f'model.num_embodiments={self.model.num_embodiments} is less than the {robots} of '
        f'data.embodiments={self.data.embodiments}; set it to {robots}.'
      )
    self._check_image()
    check_sampling(self.model, self.flow, self.sample)
    if self.data.lists_names:
      self._check_listed()

  def _check_listed(self):
    """Robots that are named are in the list of names."""
    for name, dataset in self.data.mixture.items():
      robot = dataset.embodiment
      if is_table_name(robot) and robot not in self.data.embodiments:
        raise ValueError(
          f'data.mixture.{name}.embodiment={robot!r} is not in '
          f'data.embodiments={self.data.embodiments}; add it there.'
        )

  def _check_image(self):
    """The transformer takes the tokens that the image encoder gives; without one, of any number."""
    image_dim = self.model.image_dim
    image_tokens = self.model.image_tokens
    given = (0, 0)  # (width, tokens).
    if self.model.image.kind != 'none':
      given = (self.model.image.dim, self.model.image.tokens)
    if (image_dim, image_tokens if image_dim else 0) != given:
      raise ValueError(
        f'model.image_dim={image_dim}, model.image_tokens={image_tokens} must be what '
        f'model.image.kind={self.model.image.kind!r} gives: {given}.'
      )

  def _check_counts(self):
    counts = ('steps', 'batch_size', 'accumulate', 'log_every', 'save_every', 'keep')
    low = [f'config.{key}={getattr(self, key)}' for key in counts if getattr(self, key) < 1]
    if low:
      raise ValueError(f'{", ".join(low)}: must be at least 1.')
    decay_steps = self.optimizer.decay_steps
    if decay_steps < 0 or 0 < decay_steps < self.steps:
      raise ValueError(
        f'config.optimizer.decay_steps={decay_steps}, where the learning rate reaches 0, must be '
        f'0, for config.steps={self.steps}, or at least that.'
      )

  def _check_trainable(self):
    if not self.trainable:
      raise ValueError(
        "config.trainable=() trains nothing; set it to 'all', 'lora' or patterns of parameters."
      )
    # Whatever is not trained must come from somewhere.
    if self.trainable != ('all',) and not self.init_from:
      raise ValueError(
        f'config.trainable={self.trainable} would leave random weights as they are; set '
        "config.init_from=WORKDIR, of an import or a run, or config.trainable='all'."
      )
    if 'lora' in self.trainable and not self.model.lora.rank:
      raise ValueError(
        "config.trainable='lora' needs adapters: set config.model.lora.rank, as 4 or 16."
      )
    if 'all' in self.trainable and self.model.lora.rank:
      raise ValueError(
        f"config.model.lora.rank={self.model.lora.rank} with config.trainable='all' would train "
        "adapters and what they adapt; set config.trainable='lora', or the rank to 0."
      )
