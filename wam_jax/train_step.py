"""The training step: state, loss, update. Pure; no files, no flags, no data reading."""
from __future__ import annotations

import functools
from typing import Any
from collections.abc import Callable, Iterable

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam_jax import config as cfg
from wam_jax import flow
from wam_jax import sharding
from wam_jax import types
from wam_jax.models import tokenizer
from wam_jax.models import wam


@flax.struct.dataclass
class TrainState:
  """Everything that training changes, and the frozen tokenizer.

  Attributes:
    step: int32 scalar, updates done.
    params, ema_params: float32 trees; `ema_params` is None without averaging.
    opt_state: of optax.
    frozen: the fitted `PatchTokenizer`.
  """

  step: jax.Array
  params: Any
  ema_params: Any
  opt_state: Any
  frozen: tokenizer.PatchTokenizer

  @property
  def eval_params(self) -> Any:
    """The averaged weights where there are any."""
    return self.params if self.ema_params is None else self.ema_params


def fit_frozen(config: cfg.TrainConfig, batches: Iterable[types.Batch]) -> tokenizer.PatchTokenizer:
  """Tokenizer fitted on the first `fit_windows` windows of `batches`."""
  frames: list[np.ndarray] = []
  for batch in batches:
    frames.append(np.asarray(batch.frames_BRIJ3))
    if sum(map(len, frames)) >= config.model.tokenizer.fit_windows:
      break
  return tokenizer.fit_patch_tokenizer(np.concatenate(frames), config.model.tokenizer)


def init_state(config: cfg.TrainConfig, mesh: jax.sharding.Mesh,
               frozen: tokenizer.PatchTokenizer) -> tuple[TrainState, Any]:
  """A fresh state, made already sharded, and its shardings."""
  init = functools.partial(_init, config)
  shardings = sharding.state_shardings(jax.eval_shape(init, frozen), mesh, config.rules)
  with sharding.activate(mesh, config.rules):
    return jax.jit(lambda frozen: nn.unbox(init(frozen)), out_shardings=shardings)(frozen), shardings


def abstract_state(config: cfg.TrainConfig, mesh: jax.sharding.Mesh, frozen: tokenizer.PatchTokenizer) -> TrainState:
  """ShapeDtypeStructs with shardings, like the state, for restoring a checkpoint. `frozen` may be abstract."""
  boxed = jax.eval_shape(functools.partial(_init, config), frozen)
  shardings = sharding.state_shardings(boxed, mesh, config.rules)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)


def make_train_step(config: cfg.TrainConfig, mesh: jax.sharding.Mesh,
                    shardings: Any) -> Callable[[TrainState, types.Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Compiled update. The state is donated; noise is drawn from (config.seed, state.step)."""

  def step(state: TrainState, batch: types.Batch):
    grad_fn = jax.value_and_grad(functools.partial(loss_fn, config), has_aux=True)
    key = _noise_key(config, state.step)
    (_, metrics), grads = grad_fn(state.params, state.frozen, batch, key)
    tx = make_optimizer(config)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics.update(grad_norm=optax.tree.norm(grads),
                   learning_rate=make_schedule(config)(state.step))
    ema_params = _average(state.ema_params, params, state.step, config.optimizer.ema_decay)
    return TrainState(state.step + 1, params, ema_params, opt_state, state.frozen), metrics

  batch_sharding = sharding.batch_sharding(mesh, config.rules)
  compiled = jax.jit(step, donate_argnums=0, in_shardings=(shardings, batch_sharding),
                     out_shardings=(shardings, None))
  return _within(mesh, config.rules, compiled)


def make_eval_step(config: cfg.TrainConfig, mesh: jax.sharding.Mesh,
                   shardings: Any) -> Callable[[TrainState, types.Batch], dict[str, jax.Array]]:
  """Compiled held-out loss of the averaged weights; the noise is the same at every call."""
  step = lambda state, batch: loss_fn(config, state.eval_params, state.frozen, batch, _noise_key(config, 0))[1]
  compiled = jax.jit(step, in_shardings=(shardings, sharding.batch_sharding(mesh, config.rules)))
  return _within(mesh, config.rules, compiled)


def loss_fn(config: cfg.TrainConfig, params: Any, frozen: tokenizer.PatchTokenizer, batch: types.Batch,
            key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted video and action velocity loss of a batch, and its parts."""
  c, f = config.model, config.flow
  B, Q = batch.chunk_mask_BQ.shape
  chex.assert_shape(batch.frames_BRIJ3, (B, c.camera_frames(Q), None, None, 3))
  chex.assert_shape(batch.action_BAU, (B, Q * c.actions_per_chunk, c.action_dim))
  clean = jax.lax.stop_gradient(frozen.encode(batch.frames_BRIJ3))
  key_levels, key_video, key_action = jax.random.split(key, 3)
  levels = flow.sample_levels(key_levels, B, Q, f)
  first = 0 if c.predict_first_frame else 1
  sigma_BF = jnp.concatenate(
      [levels.first_B[:, None], jnp.repeat(levels.video_BQ, c.frames_per_chunk, 1)], 1)[:, first:]
  sigma_BA = jnp.repeat(levels.action_BQ, c.actions_per_chunk, 1)
  target_video, noisy_video = _noised(key_video, clean[:, first:], sigma_BF)
  target_action, noisy_action = _noised(key_action, batch.action_BAU, sigma_BA)
  if f.mask_padded_noise:
    noisy_action = noisy_action * batch.action_mask_BAU
  model = wam.WorldActionModel(c)
  text_BPC = model.apply({'params': params}, batch.prompt_ids_BP, method=model.encode_text)
  video, action = model.apply(
      {'params': params}, clean[:, :-c.frames_per_chunk], noisy_video, sigma_BF, noisy_action, sigma_BA,
      batch.proprio_BQX, text_BPC, batch.embodiment_B, batch.action_mask_BAU.any(-1))
  frame_mask_BF = jnp.concatenate(
      [jnp.ones((B, 1), bool), jnp.repeat(batch.chunk_mask_BQ, c.frames_per_chunk, 1)], 1)[:, first:]
  video_loss = flow.video_loss(video, target_video, flow.loss_weight(sigma_BF, f), frame_mask_BF)
  action_loss = flow.action_loss(action, target_action, flow.loss_weight(sigma_BA, f), batch.action_mask_BAU,
                                 f.action_mean)
  loss = f.video_weight * video_loss + f.action_weight * action_loss
  return loss, dict(loss=loss, video_loss=video_loss, action_loss=action_loss)


def make_schedule(config: cfg.TrainConfig) -> optax.Schedule:
  """Learning rate: linear warm-up, a stretch at the peak, cosine to 0 at the last step."""
  o = config.optimizer
  warmup = min(o.warmup_steps, config.steps)
  hold = int((config.steps - warmup) * o.hold_fraction)
  decay = max(1, config.steps - warmup - hold)
  return optax.join_schedules(
      [optax.linear_schedule(0.0, o.learning_rate, max(1, warmup)), optax.constant_schedule(o.learning_rate),
       optax.cosine_decay_schedule(o.learning_rate, decay)], [warmup, warmup + hold])


def make_optimizer(config: cfg.TrainConfig) -> optax.GradientTransformation:
  """Clipped AdamW; weight decay on matrices and larger, not on vectors such as norms and biases."""
  o = config.optimizer
  return optax.chain(
      optax.clip_by_global_norm(o.clip_norm),
      optax.adamw(make_schedule(config), o.b1, o.b2, o.adam_eps, weight_decay=o.weight_decay, mask=_is_matrix))


def _is_matrix(params: Any) -> Any:
  """True for kernels and tables: leaves named 'w' or 'table'."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: any(getattr(k, 'key', None) in ('w', 'table') for k in path), params)


def _init(config: cfg.TrainConfig, frozen: tokenizer.PatchTokenizer) -> TrainState:
  """The state with logical boxes around its parameters."""
  c = config.model
  B, Q = 1, c.max_chunks
  clean = jnp.zeros((B, Q * c.frames_per_chunk - c.frames_per_chunk + 1, c.patch, c.patch, c.tokenizer.channels))
  noisy = jnp.zeros((B, Q * c.frames_per_chunk + c.predict_first_frame, *clean.shape[2:]))
  action = jnp.zeros((B, Q * c.actions_per_chunk, c.action_dim))
  condition = jnp.zeros((B, 1 + Q * c.frames_per_chunk, c.patch, c.patch, 4 + c.tokenizer.channels))
  text_BPC = lambda m: m.encode_text(jnp.zeros((B, c.text.length), jnp.int32))
  model = wam.WorldActionModel(c)
  both = lambda m: m(
      clean, noisy, jnp.zeros(noisy.shape[:2]), action, jnp.zeros(action.shape[:2]), jnp.zeros((B, Q, c.proprio_dim)),
      text_BPC(m), jnp.zeros(B, jnp.int32), jnp.ones(action.shape[:2], bool),
      condition if c.image_condition else None,
      jnp.zeros((B, c.image_tokens, c.image_dim)) if c.image_dim else None)
  params = nn.init(both, model)(jax.random.key(config.seed))['params']
  ema_params = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
  return TrainState(jnp.int32(0), params, ema_params, make_optimizer(config).init(params), frozen)


def _noised(key, clean, sigma):
  noise = flow.sample_noise(key, clean.shape)
  return flow.velocity(clean, noise), flow.interpolate(clean, noise, sigma)


def _noise_key(config: cfg.TrainConfig, step) -> jax.Array:
  return jax.random.fold_in(jax.random.key(config.seed), step)


def _average(ema_params, params, step, decay: float):
  """Running mean; early steps weigh more, so that it forgets the initialisation."""
  if ema_params is None:
    return None
  rate = jnp.maximum(1 - decay, 1 / (step + 1.0))
  return jax.tree.map(lambda e, p: e + rate * (p - e), ema_params, params)


def _within(mesh, rules, compiled):
  """`compiled`, traced with activation constraints for this mesh."""

  @functools.wraps(compiled)
  def call(*args):
    with sharding.activate(mesh, rules):
      return compiled(*args)

  return call
