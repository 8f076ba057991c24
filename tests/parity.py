"""Comparison with the official modules: the golden files, the tolerances they suggest, and the
table of errors.

A test takes an argument `golden_PREFIX` and runs once for every PREFIX*.npz of `--golden-dir`; it
compares through `check`, and the run ends with one table line per component.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax import config as cfg

HERE = pathlib.Path(__file__).parent / 'golden'
PREFIXES = (
  'dit',
  'embodiment_heads',
  'head_loss',
  'head_rollout',
  'flow_match_scheduler',
  'flow_unipc_scheduler',
  'vae21',
  'vae22',
  'umt5',
  'clip_vit',
)

# Tolerances that the files suggest, absolute or relative to the largest wanted number.
# Both sides are float32; deeper chains of operations collect more rounding.
OUTPUTS = 2e-4
ROLLOUTS = 1e-3
GRADIENTS = 1e-3
SCHEDULERS = 1e-5
ENCODERS = 1e-4


class Golden:
  """One file: arrays by name, `config` the stored configuration."""

  def __init__(self, path: pathlib.Path):
    self.name = path.stem
    with np.load(path) as file:
      self._arrays = {key: file[key] for key in file.files}
    self.config: dict[str, Any] = json.loads(str(self._arrays.get('config_json', '{}')))

  def __getitem__(self, key: str) -> np.ndarray:
    return self._arrays[key]

  def __contains__(self, key: str) -> bool:
    return key in self._arrays

  def below(self, prefix: str) -> dict[str, np.ndarray]:
    """Arrays whose name starts with `prefix`, by the rest; `below('w/')` is the state dict."""
    chosen = {key: x for key, x in self._arrays.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): x for key, x in chosen.items()}


def check(
  request, component: str, got: Any, want: Any, *, absolute: float = 0.0, relative: float = 0.0
) -> None:
  """Asserts |got - want| <= absolute + relative * max|want| everywhere, and records the largest
  error.

  Args:
    request: pytest's fixture; its test's report carries the figures to the table.
    component: row of the table, for example 'DiT block 0'.
  """
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape, f'{component}: shape {got.shape}, expected {want.shape}'
  tolerance = absolute + relative * float(np.max(np.abs(want), initial=0.0))
  error = float(np.max(np.abs(got - want), initial=0.0))
  request.node.user_properties.append(('parity', (component, error, tolerance)))
  message = f'{component}: largest error {error:.3g}, tolerance {tolerance:.3g}'
  assert error <= tolerance, message  # NaN fails too.


def check_scheduler(request, component: str, given: dict[str, np.ndarray], name: str, got: Any):
  """`check` of one of the arrays of a run of an official scheduler."""
  check(request, f'{component} {name}', got, given[name], relative=SCHEDULERS)


def files(directory: pathlib.Path, prefix: str, wanted: Sequence[str] = ()) -> list[pathlib.Path]:
  """Golden files of one kind, those that hold all `wanted` arrays."""
  found = sorted(directory.glob(f'{prefix}*.npz'))
  return [path for path in found if set(wanted) <= set(np.load(path).files)]


def table(rows: list[tuple[str, float, float]]) -> list[str]:
  """Lines of the table: per component the error that came closest to its tolerance."""
  worst: dict[str, tuple[float, float]] = {}
  for component, error, tolerance in rows:
    seen = worst.get(component)
    if seen is None or _share(error, tolerance) > _share(*seen):
      worst[component] = error, tolerance
  width = max(map(len, worst), default=0)
  lines = [f'{"component":{width}}  largest error  tolerance']
  for component, (error, tolerance) in worst.items():
    lines.append(f'{component:{width}}  {error:13.2e}  {tolerance:9.0e}')
  return lines


def _share(error: float, tolerance: float) -> float:
  """How much of its tolerance an error takes; where there is none, 1 for any error."""
  return error / tolerance if tolerance else float(error > 0)


def model_config(g: dict[str, Any]) -> cfg.ModelConfig:
  """Our config of the transformer that a file's configuration describes."""
  i2v = g['model_type'] == 'i2v'
  return cfg.ModelConfig(
    dim=g['dim'],
    mlp_dim=g['ffn_dim'],
    num_heads=g['num_heads'],
    num_layers=g['num_layers'],
    patch=g['patch_size'][1],
    # The official class decides by the kind of its model what ours says key by key.
    image_condition=i2v and g.get('concat_first_frame_latent', True),
    image_dim=g['image_embed_dim'] if g['model_type'] != 't2v' else 0,
    image_tokens=g.get('image_tokens', 257),
    freq_dim=g['freq_dim'],
    action_dim=g['action_dim'],
    proprio_dim=g['max_state_dim'],
    action_hidden=g['hidden_size'],
    frames_per_chunk=g['num_frame_per_block'],
    actions_per_chunk=g['num_action_per_block'],
    max_chunks=g['max_chunk_size'],
    predict_first_frame=True,
    state_rule='reference',
    tokenizer=cfg.TokenizerConfig(channels=g['out_dim']),
    text=cfg.TextConfig(dim=g['text_dim']),
    image=cfg.ImageConfig(kind='clip', dim=g['image_embed_dim']),
  )


def channels_last(x: np.ndarray) -> np.ndarray:
  """[B, C, F, H, W] to [B, F, H, W, C]."""
  return np.moveaxis(x, 1, -1)
