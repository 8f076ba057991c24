"""The training step: state, loss, update. Pure; no files, no flags, no data reading."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam_jax import chips
from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import flow
from wam_jax import sharding
from wam_jax import types
from wam_jax.models import encoders
from wam_jax.models import tokenizer
from wam_jax.models import wam


@flax.struct.dataclass
class TrainState:
  """Everything that training changes, and the frozen encoders.

  Attributes:
    step: int32 scalar, updates done.
    params: of the model; float32, but for what is frozen and kept in another dtype.
    ema_params: averages of what is trained, None without averaging.
    opt_state: of optax, for what is trained.
    frozen: the encoders around the transformer.
  """

  step: jax.Array
  params: Any
  ema_params: Any
  opt_state: Any
  frozen: encoders.Encoders

  @property
  def eval_params(self) -> Any:
    """The averaged weights where there are any."""
    return (
      self.params if self.ema_params is None else finetuning.overlay(self.params, self.ema_params)
    )


class Window(NamedTuple):
  """A batch as the transformer sees it.

  Attributes:
    clean_BFHWC: latents of all frames.
    action_BAU, action_mask_BAU: normalized actions; real dimensions of real steps.
    action_valid_BA: bool, action steps that other tokens may look at.
    frame_mask_BF: bool, real frames.
    proprio_BQX, embodiment_B, text_BPC: conditions.
    first_frame: what the first frame says.
  """

  clean_BFHWC: jax.Array
  action_BAU: jax.Array
  action_mask_BAU: jax.Array
  action_valid_BA: jax.Array
  frame_mask_BF: jax.Array
  proprio_BQX: jax.Array
  embodiment_B: jax.Array
  text_BPC: jax.Array
  first_frame: encoders.Condition


class Noise(NamedTuple):
  """Noise levels in [0, 1] and standard normal noise of a window: of every frame, of every action
  step.
  """

  sigma_BF: jax.Array
  sigma_BA: jax.Array
  video_BFHWC: jax.Array
  action_BAU: jax.Array


class Counts(NamedTuple):
  """Numbers of real frames, of real action entries, and of action entries with padding."""

  frames: jax.Array
  actions: jax.Array
  padded_actions: int


def fit_frozen(config: cfg.TrainConfig, batches: Iterable[types.Batch]) -> encoders.Encoders:
  """Encoders of a model whose only frozen one is the patch tokenizer, fitted on the first
  `fit_windows` windows.

  Raises:
    ValueError: the model has encoders that are not made here but imported.
  """
  m = config.model
  parts = {'tokenizer': m.tokenizer, 'text': m.text, 'image': m.image}
  imported = [
    f'model.{name}.kind={part.kind!r}'
    for name, part in parts.items()
    if part.kind in ('wan2_1', 'wan2_2', 'umt5', 'clip')
  ]
  if imported:
    raise ValueError(
      f'{", ".join(imported)} has trained weights: import them with `python -m wam_jax.convert import` '
      'and give that workdir as config.init_from (with the transformer) or config.encoders_from.'
    )
  frames: list[np.ndarray] = []
  for batch in batches:
    frames.append(np.asarray(batch.frames_BRIJ3))
    if sum(map(len, frames)) >= m.tokenizer.fit_windows:
      break
  return encoders.Encoders(
    tokenizer.fit_patch_tokenizer(np.concatenate(frames), m.tokenizer), None, None, m
  )


def init_state(
  config: cfg.TrainConfig, mesh: jax.sharding.Mesh, frozen: encoders.Encoders
) -> tuple[TrainState, Any]:
  """A fresh state, made already sharded, and its shardings."""
  init = functools.partial(_init, config)
  shardings = _shardings(config, mesh, jax.eval_shape(init, frozen))
  frozen = jax.tree.map(jax.device_put, frozen, shardings.frozen)
  with sharding.activate(mesh, config.rules):
    return jax.jit(lambda frozen: nn.unbox(init(frozen)), out_shardings=shardings)(
      frozen
    ), shardings


def abstract_state(
  config: cfg.TrainConfig, mesh: jax.sharding.Mesh, frozen: encoders.Encoders
) -> TrainState:
  """ShapeDtypeStructs with shardings, like the state, for restoring a checkpoint. `frozen` may be
  abstract.
  """
  boxed = jax.eval_shape(functools.partial(_init, config), frozen)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    _shardings(config, mesh, boxed),
  )


def _shardings(config: cfg.TrainConfig, mesh: jax.sharding.Mesh, boxed: TrainState) -> TrainState:
  """A NamedSharding for every leaf of the state."""
  return sharding.state_shardings(boxed, mesh, config.rules).replace(
    frozen=sharding.frozen_shardings(boxed.frozen, mesh, config.rules)
  )


def make_train_step(
  config: cfg.TrainConfig, mesh: jax.sharding.Mesh, shardings: Any
) -> Callable[[TrainState, types.Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Compiled update. The state is donated; noise is drawn from (config.seed, state.step)."""

  def step(state: TrainState, batch: types.Batch):
    noise = sample_noise(config, _noise_key(config, state.step), state.frozen, batch)
    grads, metrics = _gradients(config, state, batch, noise)
    tx = make_optimizer(config)
    trained, kept = finetuning.split(state.params, config.trainable)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    metrics.update(
      grad_norm=optax.tree.norm(grads), learning_rate=make_schedule(config)(state.step)
    )
    ema_params = _average(state.ema_params, trained, state.step, config.optimizer.ema_decay)
    params = finetuning.overlay(kept, trained)
    return TrainState(state.step + 1, params, ema_params, opt_state, state.frozen), metrics

  batch_sharding = sharding.batch_sharding(mesh, config.rules)
  compiled = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, batch_sharding),
    out_shardings=(shardings, None),
    compiler_options=chips.compiler_options(mesh.devices.flat[0].device_kind),
  )
  return _within(mesh, config.rules, compiled)


def make_eval_step(
  config: cfg.TrainConfig, mesh: jax.sharding.Mesh, shardings: Any
) -> Callable[[TrainState, types.Batch], dict[str, jax.Array]]:
  """Compiled held-out loss of the averaged weights; the noise is the same at every call."""
  step = lambda state, batch: loss_fn(
    config,
    state.eval_params,
    state.frozen,
    batch,
    sample_noise(config, _noise_key(config, 0), state.frozen, batch),
  )[1]
  compiled = jax.jit(step, in_shardings=(shardings, sharding.batch_sharding(mesh, config.rules)))
  return _within(mesh, config.rules, compiled)


def loss_fn(
  config: cfg.TrainConfig,
  params: Any,
  frozen: encoders.Encoders,
  batch: types.Batch,
  noise: Noise,
  counts: Counts | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted video and action velocity loss of a batch, and its parts."""
  window = encode_batch(config.model, params, frozen, batch)
  return velocity_loss(config, window, noise, *predict(config, params, window, noise), counts)


def _gradients(config: cfg.TrainConfig, state: TrainState, batch: types.Batch, noise: Noise):
  """Gradients of what is trained and parts of the loss, over `config.accumulate` parts of the batch
  in turn.

  Each part is divided by the counts of the whole batch, so the sum is what one pass would give.
  """
  trained, kept = finetuning.split(state.params, config.trainable)
  gradient = jax.grad(
    lambda trained, *args: loss_fn(config, finetuning.overlay(kept, trained), state.frozen, *args),
    has_aux=True,
  )
  if config.accumulate == 1:
    return gradient(trained, batch, noise)
  counts = count(config.model, batch)

  def one(total, part):
    return jax.tree.map(jnp.add, total, gradient(trained, *part, counts)), None

  # Every n-th sample, so that each part lies on all devices.
  parts = jax.tree.map(
    lambda x: jnp.swapaxes(x.reshape(-1, config.accumulate, *x.shape[1:]), 0, 1), (batch, noise)
  )
  first, rest = jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts)
  return jax.lax.scan(one, gradient(trained, *first, counts), rest)[0]


def count(c: cfg.ModelConfig, batch: types.Batch) -> Counts:
  """What the losses of a batch are means over."""
  frames = jnp.sum(_frame_mask(c, batch)[:, _first(c) :])
  return Counts(frames, jnp.sum(batch.action_mask_BAU), batch.action_mask_BAU.size)


def encode_batch(
  c: cfg.ModelConfig, params: Any, frozen: encoders.Encoders, batch: types.Batch
) -> Window:
  """Pixels and words to latents and embeddings; no gradient reaches the frozen encoders."""
  B, Q = batch.chunk_mask_BQ.shape
  chex.assert_shape(batch.action_BAU, (B, Q * c.actions_per_chunk, c.action_dim))
  if (ready := batch.features) is not None:
    condition = None if ready.condition_BFHWC is None else encoders.with_mask(ready.condition_BFHWC)
    clean, first_frame, text_BPC = (
      ready.clean_BFHWC,
      encoders.Condition(ready.image_BIC, condition),
      ready.text_BPC,
    )
  else:
    chex.assert_shape(batch.frames_BRIJ3, (B, c.camera_frames(Q), None, None, 3))
    clean, first_frame = (
      frozen.encode(batch.frames_BRIJ3),
      frozen.encode_condition(batch.frames_BRIJ3[:, :1]),
    )
    text_BPC = None if frozen.text is None else frozen.text.encode(batch.prompt_ids_BP)
  clean, first_frame, text_BPC = jax.lax.stop_gradient((clean, first_frame, text_BPC))
  if text_BPC is None:
    model = wam.WorldActionModel(c)
    text_BPC = model.apply({'params': params}, batch.prompt_ids_BP, method=model.encode_text)
  return Window(
    clean,
    batch.action_BAU,
    batch.action_mask_BAU,
    batch.action_mask_BAU.any(-1),
    _frame_mask(c, batch),
    batch.proprio_BQX,
    batch.embodiment_B,
    text_BPC,
    first_frame,
  )


def _frame_mask(c: cfg.ModelConfig, batch: types.Batch) -> jax.Array:
  """[B, F] bool, latent frames that are not padding."""
  chunks_BF = jnp.repeat(batch.chunk_mask_BQ, c.frames_per_chunk, 1)
  return jnp.concatenate([jnp.ones_like(chunks_BF[:, :1]), chunks_BF], 1)


def sample_noise(
  config: cfg.TrainConfig, key: jax.Array, frozen: encoders.Encoders, batch: types.Batch
) -> Noise:
  """One draw for every sample of the batch."""
  c = config.model
  key_levels, key_video, key_action = jax.random.split(key, 3)
  B, Q = batch.chunk_mask_BQ.shape
  clean = (
    batch.features.clean_BFHWC
    if batch.features
    else jax.eval_shape(frozen.encode, batch.frames_BRIJ3)
  )
  levels = flow.sample_levels(key_levels, B, Q, config.flow, c.actions_per_chunk)
  sigma_BF = jnp.concatenate(
    [levels.first_B[:, None], jnp.repeat(levels.video_BQ, c.frames_per_chunk, 1)], 1
  )
  video = flow.sample_noise(key_video, (B, clean.shape[1] - _first(c), *clean.shape[2:]))
  video = jnp.pad(video, ((0, 0), (_first(c), 0), (0, 0), (0, 0), (0, 0)))
  return Noise(
    sigma_BF, levels.action_BA, video, flow.sample_noise(key_action, batch.action_BAU.shape)
  )


def predict(
  config: cfg.TrainConfig, params: Any, window: Window, noise: Noise
) -> tuple[jax.Array, jax.Array]:
  """Velocities of the noised window: of its frames (but frame 0, where that is given), and of its
  actions.
  """
  c, first = config.model, _first(config.model)
  noisy_video = flow.interpolate(window.clean_BFHWC, noise.video_BFHWC, noise.sigma_BF)[:, first:]
  noisy_action = flow.interpolate(window.action_BAU, noise.action_BAU, noise.sigma_BA)
  if config.flow.mask_padded_noise:
    noisy_action = noisy_action * window.action_mask_BAU
  return wam.WorldActionModel(c).apply(
    {'params': params},
    window.clean_BFHWC[:, : -c.frames_per_chunk],
    noisy_video,
    noise.sigma_BF[:, first:],
    noisy_action,
    noise.sigma_BA,
    window.proprio_BQX,
    window.text_BPC,
    window.embodiment_B,
    window.action_valid_BA,
    window.first_frame.latents_BFHWC,
    window.first_frame.image_BIC,
  )


def velocity_loss(
  config: cfg.TrainConfig,
  window: Window,
  noise: Noise,
  video: jax.Array,
  action: jax.Array,
  counts: Counts | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted squared error of predicted velocities, and its parts. Source: DreamZero policy head
  `forward`.

  Args:
    counts: to divide by, where the window is a part of a batch; by default its own.
  """
  f, first = config.flow, _first(config.model)
  sigma_BF = noise.sigma_BF[:, first:]
  target_video = flow.velocity(window.clean_BFHWC, noise.video_BFHWC)[:, first:]
  frames, actions, padded = counts or (None,) * 3
  video_loss = flow.video_loss(
    video, target_video, flow.loss_weight(sigma_BF, f), window.frame_mask_BF[:, first:], frames
  )
  action_loss = flow.action_loss(
    action,
    flow.velocity(window.action_BAU, noise.action_BAU),
    flow.loss_weight(noise.sigma_BA, f),
    window.action_mask_BAU,
    f.action_mean,
    padded if f.action_mean == 'padded' else actions,
  )
  loss = f.video_weight * video_loss + f.action_weight * action_loss
  return loss, dict(loss=loss, video_loss=video_loss, action_loss=action_loss)


def _first(c: cfg.ModelConfig) -> int:
  """The first frame that is denoised."""
  return 0 if c.predict_first_frame else 1


def make_schedule(config: cfg.TrainConfig) -> optax.Schedule:
  """Learning rate: linear warm-up, a stretch at the peak, cosine to 0 at the last step."""
  o = config.optimizer
  warmup = min(o.warmup_steps, config.steps)
  hold = int((config.steps - warmup) * o.hold_fraction)
  decay = max(1, config.steps - warmup - hold)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, o.learning_rate, max(1, warmup)),
      optax.constant_schedule(o.learning_rate),
      optax.cosine_decay_schedule(o.learning_rate, decay),
    ],
    [warmup, warmup + hold],
  )


def make_optimizer(config: cfg.TrainConfig) -> optax.GradientTransformation:
  """Clipped AdamW; weight decay on matrices and larger, not on vectors such as norms and biases."""
  o = config.optimizer
  return optax.chain(
    optax.clip_by_global_norm(o.clip_norm),
    optax.adamw(
      make_schedule(config), o.b1, o.b2, o.adam_eps, weight_decay=o.weight_decay, mask=_is_matrix
    ),
  )


def _is_matrix(params: Any) -> Any:
  """True for kernels, tables and adapters."""
  names = ('w', 'table', finetuning.DOWN, finetuning.UP)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(getattr(k, 'key', None) in names for k in path), params
  )


def _init(config: cfg.TrainConfig, frozen: encoders.Encoders) -> TrainState:
  """The state with logical boxes around its parameters."""
  c = config.model
  B, Q = 1, c.max_chunks
  clean = jnp.zeros(
    (B, Q * c.frames_per_chunk - c.frames_per_chunk + 1, c.patch, c.patch, c.tokenizer.channels)
  )
  noisy = jnp.zeros((B, Q * c.frames_per_chunk + c.predict_first_frame, *clean.shape[2:]))
  action = jnp.zeros((B, Q * c.actions_per_chunk, c.action_dim))
  condition = jnp.zeros((B, 1 + Q * c.frames_per_chunk, c.patch, c.patch, 4 + c.tokenizer.channels))
  # A frozen text encoder is not part of the model.
  text_BPC = lambda m: (
    m.encode_text(jnp.zeros((B, c.text.length), jnp.int32))
    if c.text.kind == 'word'
    else jnp.zeros((B, c.text.length, c.text.dim))
  )
  model = wam.WorldActionModel(c)
  both = lambda m: m(
    clean,
    noisy,
    jnp.zeros(noisy.shape[:2]),
    action,
    jnp.zeros(action.shape[:2]),
    jnp.zeros((B, Q, c.proprio_dim)),
    text_BPC(m),
    jnp.zeros(B, jnp.int32),
    jnp.ones(action.shape[:2], bool),
    condition if c.image_condition else None,
    jnp.zeros((B, c.image_tokens, c.image_dim)) if c.image_dim else None,
  )
  params = nn.init(both, model)(jax.random.key(config.seed))['params']
  trained, kept = finetuning.split(params, config.trainable)
  params = finetuning.overlay(jax.tree.map(lambda x: x.astype(config.frozen_dtype), kept), trained)
  ema_params = jax.tree.map(jnp.copy, trained) if config.optimizer.ema_decay else None
  return TrainState(jnp.int32(0), params, ema_params, make_optimizer(config).init(trained), frozen)


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
