"""The training step: state, loss, update. Pure; no files, no flags, no data reading."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam_jax import compiler_options
from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import flow
from wam_jax import sharding
from wam_jax import types
from wam_jax.models import encoders
from wam_jax.models import initial
from wam_jax.models import tokenizer
from wam_jax.models import wam

_EVALUATION = 2**31  # In place of a step, which is an int32.


@flax.struct.dataclass(kw_only=True)
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
    if self.ema_params is None:
      return self.params
    return finetuning.overlay(self.params, self.ema_params)


@flax.struct.dataclass(kw_only=True)
class Window:
  """A batch as the transformer sees it.

  Attributes:
    clean_BFHWC: latents of all frames.
    frame_mask_BF: bool, real frames.
    action_BAU: normalized actions.
    action_mask_BAU: bool, real dimensions of real steps.
    body: the robots and their states.
    text_BPC: embedded prompts.
    condition: what the first frame says.
  """

  clean_BFHWC: jax.Array
  frame_mask_BF: jax.Array
  action_BAU: jax.Array
  action_mask_BAU: jax.Array
  body: types.Body
  text_BPC: jax.Array
  condition: types.Condition


@flax.struct.dataclass(kw_only=True)
class Noise:
  """What makes a window noisy: noise levels in [0, 1], and standard normal noise.

  Attributes:
    sigma_BF: the level of every frame; sigma_BA: that of every action step.
    video_BFHWC, action_BAU: the noise itself.
    seen_BF: bool, frames whose noisy video is seen, and counts; None where all are.
    given_BA: bool, action steps that are given clean, and do not count; None where none is.
  """

  sigma_BF: jax.Array
  sigma_BA: jax.Array
  video_BFHWC: jax.Array
  action_BAU: jax.Array
  seen_BF: jax.Array | None = None
  given_BA: jax.Array | None = None

  def counts_of(self, frame_mask_BF: jax.Array) -> jax.Array:
    """[B, F] bool: real frames whose video counts."""
    return frame_mask_BF if self.seen_BF is None else frame_mask_BF & self.seen_BF

  def actions_that_count(self, action_mask_BAU: jax.Array) -> jax.Array:
    """[B, A, U] bool: real actions that are denoised."""
    if self.given_BA is None:
      return action_mask_BAU
    return action_mask_BAU & ~self.given_BA[..., None]


@flax.struct.dataclass(kw_only=True)
class Counts:
  """What the losses of a window are divided by; None for what the window itself has.

  Attributes:
    frames: the number of real frames.
    actions: the number of real action entries.
    padded_actions: the number of action entries of real chunks, padded dimensions included.
  """

  frames: jax.Array | None = None
  actions: jax.Array | None = None
  padded_actions: jax.Array | None = None


def fit_frozen(c: cfg.ModelConfig, batches: Iterable[types.Batch]) -> encoders.Encoders:
  """Encoders of a model whose only frozen one is the patch tokenizer, fitted on the first
  `fit_windows` windows.

  Raises:
    ValueError: the model has encoders that are not made here but imported.
  """
  parts = {'tokenizer': c.tokenizer, 'text': c.text, 'image': c.image}
  imported = [
    f'model.{name}.kind={part.kind!r}'
    for name, part in parts.items()
    if part.kind in ('wan2_1', 'wan2_2', 'umt5', 'clip')
  ]
  if imported:
    raise ValueError(
      f'{", ".join(imported)} has trained weights: import them with '
      '`python -m wam_jax.convert import` and give that workdir as config.init_from (with the '
      'transformer) or config.encoders_from.'
    )

  # No more than is needed: each batch is read and decoded for this alone.
  frames: list[np.ndarray] = []
  for batch in batches:
    frames.append(np.asarray(batch.frames_BRIJ3))
    if sum(map(len, frames)) >= c.tokenizer.fit_windows:
      break
  fitted = tokenizer.fit_patch_tokenizer(np.concatenate(frames), c.tokenizer)
  return encoders.Encoders(tokenizer=fitted, text=None, image=None, config=c)


def init_state(
  config: cfg.TrainConfig,
  mesh: jax.sharding.Mesh,
  frozen: encoders.Encoders,
  given: Mapping[str, Any] | None = None,
) -> tuple[TrainState, Any]:
  """A fresh state, made already sharded, and its shardings.

  Args:
    frozen: the encoders, of NumPy's arrays or already on the mesh.
    given: parameters in place of fresh ones, of any dtype, already on the mesh, split as in
      `abstract_state`; one that has fewer rows takes the place of the first ones.
  """
  given = given or {}
  shardings = _shardings(config, mesh, jax.eval_shape(functools.partial(_init, config), frozen))

  wanted = abstract_state(config, mesh, frozen).params
  whole = finetuning.select_like(given, wanted)

  # Neither encoders nor whole given parameters go through the program, which would copy them.
  def make(given) -> TrainState:
    state = nn.unbox(_init(config, None, given))
    return state.replace(params=finetuning.without(state.params, whole))

  # Compiled with its shardings, so that no device ever holds the whole of it.
  made = shardings.replace(params=finetuning.without(shardings.params, whole), frozen=None)
  compiled = jax.jit(make, out_shardings=made)
  with sharding.activate(mesh, config.rules):
    state = compiled(given)
  state = state.replace(
    params=finetuning.overlay(state.params, _fill(wanted, whole)),
    frozen=sharding.place(frozen, shardings.frozen),
  )
  return state, shardings


def _fill(params: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
  """`given` in the dtypes of `params`; what has fewer rows is completed by theirs."""
  filled = {}
  for key, x in given.items():
    like = params[key]
    if isinstance(x, Mapping):
      filled[key] = _fill(like, x)
    elif x.shape == like.shape:
      filled[key] = x.astype(like.dtype)
    else:
      filled[key] = like.at[: len(x)].set(x.astype(like.dtype))
  return filled


def abstract_state(
  config: cfg.TrainConfig, mesh: jax.sharding.Mesh, frozen: encoders.Encoders
) -> TrainState:
  """ShapeDtypeStructs with shardings, like the state, for restoring a checkpoint. `frozen` may be
  abstract.
  """
  boxed = jax.eval_shape(functools.partial(_init, config), frozen)
  shardings = _shardings(config, mesh, boxed)
  return jax.tree.map(
    lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
    nn.unbox(boxed),
    shardings,
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
    key = _noise_key(config.seed, state.step)
    noise = sample_noise(config.model, config.flow, key, state.frozen, batch)
    grads, metrics = _gradients(config, state, batch, noise)

    # What is frozen has neither gradient nor moments nor average.
    optimizer = make_optimizer(config.optimizer, config.steps)
    trained, kept = finetuning.split(state.params, config.trainable)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)

    schedule = make_schedule(config.optimizer, config.steps)
    metrics.update(grad_norm=optax.tree.norm(grads), learning_rate=schedule(state.step))
    after = TrainState(
      step=state.step + 1,
      params=finetuning.overlay(kept, trained),
      ema_params=_average(state.ema_params, trained, state.step, config.optimizer.ema_decay),
      opt_state=opt_state,
      frozen=state.frozen,
    )
    return after, metrics

  batch_sharding = sharding.batch_sharding(mesh, config.rules)
  compiled = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, batch_sharding),
    out_shardings=(shardings, None),
    compiler_options=make_options(config, mesh),
  )
  return _on_mesh(compiled, mesh, config.rules)


def make_options(config: cfg.TrainConfig, mesh: jax.sharding.Mesh) -> compiler_options.Options:
  """What the steps of this run are compiled with. Errors as `compiler_options.make`."""
  return compiler_options.make(
    mesh.devices.flat[0].device_kind, config.compiler_options, config.sdc_checks
  )


def make_eval_step(
  config: cfg.TrainConfig, mesh: jax.sharding.Mesh, shardings: Any
) -> Callable[[TrainState, types.Batch, np.uint32], dict[str, jax.Array]]:
  """Compiled held-out loss of the averaged weights on a batch of this number, of which the noise is
  a function.
  """

  def step(state: TrainState, batch: types.Batch, number: jax.Array):
    # Two evaluations differ by the weights alone, and share no noise with any step.
    key = jax.random.fold_in(_noise_key(config.seed, _EVALUATION), number)
    noise = sample_noise(config.model, config.flow, key, state.frozen, batch)
    return loss_fn(config, state.eval_params, state.frozen, batch, noise)[1]

  batch_sharding = sharding.batch_sharding(mesh, config.rules)
  compiled = jax.jit(step, in_shardings=(shardings, batch_sharding, None))
  return _on_mesh(compiled, mesh, config.rules)


def loss_fn(
  config: cfg.TrainConfig,
  params: Any,
  frozen: encoders.Encoders,
  batch: types.Batch,
  noise: Noise,
  counts: Counts = Counts(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted video and action velocity loss of a batch, and its parts."""
  window = encode_batch(config.model, params, frozen, batch)
  velocities = predict(config.model, config.flow, params, window, noise)
  return velocity_loss(config.model, config.flow, window, noise, velocities, counts=counts)


def _gradients(config: cfg.TrainConfig, state: TrainState, batch: types.Batch, noise: Noise):
  """Gradients of what is trained and parts of the loss, over `config.accumulate` parts of the batch
  in turn.

  Each part is divided by the counts of the whole batch, so the sum is what one pass would give.
  """
  trained, kept = finetuning.split(state.params, config.trainable)

  def loss(trained, batch, noise, counts):
    params = finetuning.overlay(kept, trained)
    return loss_fn(config, params, state.frozen, batch, noise, counts=counts)

  gradient = jax.grad(loss, has_aux=True)
  if config.accumulate == 1:
    return gradient(trained, batch, noise, Counts())

  # Every n-th sample, so that each part lies on all devices.
  def interleave(x):
    x = x.reshape(-1, config.accumulate, *x.shape[1:])
    return jnp.swapaxes(x, 0, 1)

  parts = jax.tree.map(interleave, (batch, noise))
  counts = count(config.model, batch, noise)

  def add_part(total, part):
    return jax.tree.map(jnp.add, total, gradient(trained, *part, counts)), None

  # From zeros, so that the program has the work of a part once.
  first = jax.tree.map(lambda x: x[0], parts)
  of_a_part = jax.eval_shape(gradient, trained, *first, counts)
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), of_a_part)
  return jax.lax.scan(add_part, nothing, parts)[0]


def count(c: cfg.ModelConfig, batch: types.Batch, noise: Noise) -> Counts:
  """What the losses of a batch are means over."""
  frame_mask_BF = _frame_mask(c, batch)
  return Counts(
    frames=jnp.sum(noise.counts_of(frame_mask_BF)[:, _first_denoised(c) :]),
    actions=jnp.sum(noise.actions_that_count(batch.action_mask_BAU)),
    padded_actions=_count_padded_actions(c, frame_mask_BF),
  )


def _count_padded_actions(c: cfg.ModelConfig, frame_mask_BF: jax.Array) -> jax.Array:
  """The action entries that the reference divides by: all dimensions of all steps of the chunks
  that a window has. A missing chunk has none: the reference's windows end before it.
  """
  chunks = jnp.sum(frame_mask_BF[:, 1:]) / c.frames_per_chunk
  return chunks * c.action_horizon * c.action_dim


def encode_batch(
  c: cfg.ModelConfig, params: Any, frozen: encoders.Encoders, batch: types.Batch
) -> Window:
  """Pixels and words to latents and embeddings; no gradient reaches the frozen encoders."""
  B, Q = batch.chunk_mask_BQ.shape
  chex.assert_shape(batch.action_BAU, (B, Q * c.action_horizon, c.action_dim))

  if batch.features is None:
    chex.assert_shape(batch.frames_BRIJ3, (B, c.camera_frames(Q), None, None, 3))
    clean_BFHWC = frozen.encode(batch.frames_BRIJ3)
    condition = frozen.encode_condition(batch.frames_BRIJ3[:, :1])
    text_BPC = None if frozen.text is None else frozen.text.encode(batch.prompt_ids_BP)
  else:
    clean_BFHWC = batch.features.clean_BFHWC
    text_BPC = batch.features.text_BPC
    first_BFHWC = batch.features.condition_BFHWC
    condition = types.Condition(
      latents_BFHWC=None if first_BFHWC is None else encoders.with_mask(first_BFHWC),
      image_BIC=batch.features.image_BIC,
    )
  encoded = (clean_BFHWC, condition, text_BPC)
  clean_BFHWC, condition, text_BPC = jax.lax.stop_gradient(encoded)

  if text_BPC is None:
    # The text encoder is a part of the model, so its gradient goes on.
    model = wam.WorldActionModel(c)
    text_BPC = model.apply({'params': params}, batch.prompt_ids_BP, method=model.encode_text)

  body = types.Body(
    proprio_BSX=batch.proprio_BQX,
    embodiment_B=batch.embodiment_B,
    valid_BA=batch.action_mask_BAU.any(-1),
  )
  return Window(
    clean_BFHWC=clean_BFHWC,
    frame_mask_BF=_frame_mask(c, batch),
    action_BAU=batch.action_BAU,
    action_mask_BAU=batch.action_mask_BAU,
    body=body,
    text_BPC=text_BPC,
    condition=condition,
  )


def _frame_mask(c: cfg.ModelConfig, batch: types.Batch) -> jax.Array:
  """[B, F] bool, latent frames that are not padding."""
  chunks_BF = jnp.repeat(batch.chunk_mask_BQ, c.frames_per_chunk, 1)
  return jnp.concatenate([jnp.ones_like(chunks_BF[:, :1]), chunks_BF], 1)


def sample_noise(
  c: cfg.ModelConfig,
  f: cfg.FlowConfig,
  key: jax.Array,
  frozen: encoders.Encoders,
  batch: types.Batch,
) -> Noise:
  """One draw for every sample of the batch."""
  # Each kind of noise has a key of its own: what one of them draws does not depend on the others.
  key_levels, key_video, key_action = jax.random.split(key, 3)
  B, Q = batch.chunk_mask_BQ.shape
  levels = flow.sample_levels(
    key_levels, B, Q, f, c.action_horizon, c.action_overlap, given_BQ=batch.given_BQ
  )
  chunks_BF = jnp.repeat(levels.video_BQ, c.frames_per_chunk, 1)
  seen_BF = None
  if levels.video_seen_BQ is not None:
    # Frame 0, which only sees itself, is of no chunk.
    seen_BF = jnp.repeat(levels.video_seen_BQ, c.frames_per_chunk, 1)
    seen_BF = jnp.pad(seen_BF, ((0, 0), (1, 0)), constant_values=True)

  if batch.features is None:
    clean = jax.eval_shape(frozen.encode, batch.frames_BRIJ3)
  else:
    clean = batch.features.clean_BFHWC
  # A frame 0 that is not denoised has no noise.
  first = _first_denoised(c)
  _, F, *latent = clean.shape
  video_BFHWC = flow.sample_noise(key_video, (B, F - first, *latent))
  before_frames = [(0, 0), (first, 0), (0, 0), (0, 0), (0, 0)]
  video_BFHWC = jnp.pad(video_BFHWC, before_frames)

  return Noise(
    sigma_BF=jnp.concatenate([levels.first_B[:, None], chunks_BF], 1),
    sigma_BA=levels.action_BA,
    video_BFHWC=video_BFHWC,
    action_BAU=flow.sample_noise(key_action, batch.action_BAU.shape),
    seen_BF=seen_BF,
    given_BA=levels.given_BA,
  )


def predict(
  c: cfg.ModelConfig, f: cfg.FlowConfig, params: Any, window: Window, noise: Noise
) -> tuple[jax.Array, jax.Array]:
  """Velocities of the noised window: of its frames (but frame 0, where that is given), and of its
  actions.
  """
  first = _first_denoised(c)
  video_BFHWC = flow.interpolate(window.clean_BFHWC, noise.video_BFHWC, noise.sigma_BF)
  action_BAU = flow.interpolate(window.action_BAU, noise.action_BAU, noise.sigma_BA)
  if f.mask_padded_noise:
    # What a robot does not have is 0, not noise; the reference leaves the noise.
    action_BAU = action_BAU * window.action_mask_BAU
  noisy = types.Noisy(
    video_BFHWC=video_BFHWC[:, first:],
    sigma_video_BF=noise.sigma_BF[:, first:],
    video_seen_BF=None if noise.seen_BF is None else noise.seen_BF[:, first:],
    action_BAU=action_BAU,
    sigma_action_BA=noise.sigma_BA,
  )
  return wam.WorldActionModel(c).apply(
    {'params': params},
    clean_BFHWC=window.clean_BFHWC[:, : -c.frames_per_chunk],  # Nobody sees the last chunk.
    noisy=noisy,
    body=window.body,
    text_BPC=window.text_BPC,
    condition=window.condition,
  )


def velocity_loss(
  c: cfg.ModelConfig,
  f: cfg.FlowConfig,
  window: Window,
  noise: Noise,
  velocities: tuple[jax.Array, jax.Array],
  counts: Counts = Counts(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted squared error of predicted velocities, and its parts. Source: DreamZero policy head
  `forward`.

  Args:
    velocities: (video, actions), as `predict` gives them.
    counts: those of the batch that the window is a part of.
  """
  first = _first_denoised(c)
  video_BFHWC, action_BAU = velocities
  action_count = counts.actions
  if f.action_mean == 'padded':
    action_count = counts.padded_actions
    if action_count is None:
      action_count = _count_padded_actions(c, window.frame_mask_BF)

  video_loss = flow.video_loss(
    video_BFHWC,
    flow.velocity(window.clean_BFHWC, noise.video_BFHWC)[:, first:],
    weight_BF=flow.loss_weight(noise.sigma_BF[:, first:], f),
    mask_BF=noise.counts_of(window.frame_mask_BF)[:, first:],
    count=counts.frames,
  )
  action_loss = flow.action_loss(
    action_BAU,
    flow.velocity(window.action_BAU, noise.action_BAU),
    weight_BA=flow.loss_weight(noise.sigma_BA, f),
    mask_BAU=noise.actions_that_count(window.action_mask_BAU),
    count=action_count,
  )
  loss = f.video_weight * video_loss + f.action_weight * action_loss
  return loss, dict(loss=loss, video_loss=video_loss, action_loss=action_loss)


def _first_denoised(c: cfg.ModelConfig) -> int:
  """The first frame that is denoised: frame 0, or the first of chunk 0 where frame 0 is given."""
  return 0 if c.predict_first_frame else 1


def make_schedule(o: cfg.OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate: linear warm-up, a stretch at the peak, cosine to 0 at `o.decay_steps`, or where
  that is 0 at the last of `steps`.
  """
  steps = o.decay_steps or steps
  # A run that is shorter than its warm-up reaches the peak at its end.
  warmup = min(o.warmup_steps, steps)
  hold = int((steps - warmup) * o.hold_fraction)
  decay = max(1, steps - warmup - hold)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, o.learning_rate, max(1, warmup)),
      optax.constant_schedule(o.learning_rate),
      optax.cosine_decay_schedule(o.learning_rate, decay),
    ],
    [warmup, warmup + hold],
  )


def make_optimizer(o: cfg.OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Clipped AdamW; weight decay on matrices and larger, not on vectors such as norms and biases."""
  adamw = optax.adamw(
    make_schedule(o, steps),
    b1=o.b1,
    b2=o.b2,
    eps=o.adam_eps,
    weight_decay=o.weight_decay,
    mask=_is_matrix,
  )
  return optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw)


def _is_matrix(params: Any) -> Any:
  """True for kernels, tables and adapters."""
  # By name and not by number of axes: biases of robots and stacks of layers have several, too.
  names = ('w', 'table', finetuning.DOWN, finetuning.UP)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(getattr(k, 'key', None) in names for k in path), params
  )


def _init(
  config: cfg.TrainConfig, frozen: encoders.Encoders | None, given: Mapping[str, Any] | None = None
) -> TrainState:
  """The state with logical boxes around its parameters, but around none where some are given."""
  params = initial.init(config.model, jax.random.key(config.seed))
  if given:
    params = nn.unbox(params)
    params = finetuning.overlay(params, _fill(params, given))
  trained, kept = finetuning.split(params, config.trainable)
  # Without gradient and optimizer these need no float32.
  kept = jax.tree.map(lambda x: x.astype(config.frozen_dtype), kept)
  return TrainState(
    step=jnp.int32(0),
    params=finetuning.overlay(kept, trained),
    ema_params=jax.tree.map(jnp.copy, trained) if config.optimizer.ema_decay else None,
    opt_state=make_optimizer(config.optimizer, config.steps).init(trained),
    frozen=frozen,
  )


def _noise_key(seed: int, step) -> jax.Array:
  # From the step alone, so that a run that goes on after a restart draws what it would have drawn.
  # Parameters are drawn from the same root, by names: to split it now would change every run.
  return jax.random.fold_in(jax.random.key(seed), step)


def _average(ema_params, params, step, decay: float):
  """Running mean; early steps weigh more, so that it forgets the initialisation."""
  if ema_params is None:
    return None
  rate = jnp.maximum(1 - decay, 1 / (step + 1.0))  # The mean of all steps, until decay is slower.
  return jax.tree.map(lambda e, p: e + rate * (p - e), ema_params, params)


def _on_mesh(compiled, mesh, rules):
  """`compiled`, traced with activation constraints for this mesh."""

  @functools.wraps(compiled)
  def call(*args):
    with sharding.activate(mesh, rules):
      return compiled(*args)

  return call
