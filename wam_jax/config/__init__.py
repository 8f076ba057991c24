"""Every setting of the system, with its default, unit and check. Owns no numerics; sizes and
datasets with a name are in presets.py.

A config file returns a `ConfigDict` made by `base()`; `from_config_dict` turns it into the frozen
dataclasses of this package, and nothing deeper ever sees a ConfigDict. Keys `config.GROUP.NAME` are
declared in GROUP.py, those of no group in run.py.
"""

from wam_jax.config.build import base
from wam_jax.config.build import from_config_dict
from wam_jax.config.build import to_dict
from wam_jax.config.choices import Dtype
from wam_jax.config.choices import list_choices
from wam_jax.config.data import DataConfig
from wam_jax.config.data import DatasetConfig
from wam_jax.config.data import is_table_name
from wam_jax.config.encoders import ImageConfig
from wam_jax.config.encoders import TextConfig
from wam_jax.config.encoders import TokenizerConfig
from wam_jax.config.encoders import VAEConfig
from wam_jax.config.evaluation import EvalConfig
from wam_jax.config.flow import FlowConfig
from wam_jax.config.model import LoraConfig
from wam_jax.config.model import ModelConfig
from wam_jax.config.optimizer import OptimizerConfig
from wam_jax.config.run import DEFAULT_RULES
from wam_jax.config.run import TrainConfig
from wam_jax.config.sample import check_sampling
from wam_jax.config.sample import check_weights
from wam_jax.config.sample import choose_dtype
from wam_jax.config.sample import list_untried
from wam_jax.config.sample import override_sampling
from wam_jax.config.sample import read_mesh
from wam_jax.config.sample import SampleConfig

__all__ = [
  'DEFAULT_RULES',
  'DataConfig',
  'DatasetConfig',
  'Dtype',
  'EvalConfig',
  'FlowConfig',
  'ImageConfig',
  'LoraConfig',
  'ModelConfig',
  'OptimizerConfig',
  'SampleConfig',
  'TextConfig',
  'TokenizerConfig',
  'TrainConfig',
  'VAEConfig',
  'base',
  'check_sampling',
  'check_weights',
  'choose_dtype',
  'from_config_dict',
  'is_table_name',
  'list_choices',
  'list_untried',
  'override_sampling',
  'read_mesh',
  'to_dict',
]
