"""The transformer and its modules against the official PyTorch ones, on the golden files
(tests/golden/README.md).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import types
from wam_jax.interop.table import dit as table
from wam_jax.interop.table import rows
from wam_jax.models import action
from wam_jax.models import attention
from wam_jax.models import layers
from wam_jax.models import wam


class Case:
  """A file's model, parameters and inputs; sizes come from its configuration."""

  def __init__(self, golden: parity.Golden):
    g = golden.config
    self.golden = golden
    self.chunks = g['chunks']
    self.frames = g['frames']
    _, patch_rows, patch_columns = g['patch_size']
    self.grid = g['latent_h'] // patch_rows, g['latent_w'] // patch_columns
    everything = g['max_chunk_size'] == -1
    self.config = cfg.ModelConfig(
      dim=g['dim'],
      mlp_dim=g['ffn_dim'],
      num_heads=g['num_heads'],
      num_layers=g['num_layers'],
      patch=patch_rows,
      image_condition=bool(g['y_channels']),
      image_dim=g['image_embed_dim'],
      image_tokens=g['image_tokens'],
      freq_dim=g['freq_dim'],
      action_dim=g['action_dim'],
      proprio_dim=g['max_state_dim'],
      action_hidden=g['hidden_size'],
      frames_per_chunk=g['num_frame_per_block'],
      actions_per_chunk=g['num_action_per_block'],
      # The reference's rules, not our defaults (docs/differences.md).
      predict_first_frame=True,
      state_rule='reference',
      eps=g['eps'],
      max_chunks=self.chunks if everything else g['max_chunk_size'],
      history_rule='reference_global' if everything else 'chunk',
      tokenizer=cfg.TokenizerConfig(channels=g['out_dim']),
      text=cfg.TextConfig(dim=g['text_dim']),
    )
    self.states_per_chunk = g['num_state_per_block']
    self.model = wam.WorldActionModel(self.config)
    self.rows = table.rows(self.config)
    self.params = rows.to_params(self.rows, golden.below('w/'))
    self.embodiment_B = np.zeros(g['batch'], np.int32)
    self.condition = video(golden['in/y']) if 'in/y' in golden else None
    self.clean = video(golden['in/clean_latents'])

  def inputs(self):
    """Arguments of the teacher-forced forward."""
    golden = self.golden
    return dict(
      clean_BFHWC=self.clean,
      noisy=types.Noisy(
        video_BFHWC=video(golden['in/noisy_latents']),
        # The reference counts levels from 0 to 1000.
        sigma_video_BF=golden['in/timestep'] / 1000,
        action_BAU=golden['in/noisy_action'],
        sigma_action_BA=golden['in/timestep_action'] / 1000,
      ),
      body=types.Body(
        proprio_BSX=golden['in/state'],
        embodiment_B=self.embodiment_B,
        valid_BA=np.ones(golden['in/noisy_action'].shape[:2], bool),
      ),
      text_BPC=golden['in/context'],
      condition=types.Condition(latents_BFHWC=self.condition, image_BIC=golden['in/clip_feature']),
    )

  def compiled(self, method=None, **options):
    """The model or one of its methods as a compiled function of the inputs."""

    @jax.jit
    def run(params, args, named):
      return self.model.apply({'params': params}, *args, **named, method=method, **options)

    return lambda *args, **named: run(self.params, args, named)

  def layout(self, clean_frames, chunks):
    c = self.config
    return masks.training_layout(
      clean_frames=clean_frames,
      noisy_frames=range(self.frames),
      tokens_per_frame=self.grid[0] * self.grid[1],
      frames_per_chunk=c.frames_per_chunk,
      actions_per_chunk=c.actions_per_chunk,
      states_per_chunk=self.states_per_chunk,
      chunks=chunks,
    )


def video(x):
  """Batch x channel x frame x row x column to ours."""
  return np.moveaxis(x, 1, -1)


@pytest.fixture(scope='module')
def case(golden_dit):
  return Case(golden_dit)


def test_files_are_there():
  paths = parity.files(parity.HERE, 'dit') + parity.files(parity.HERE, 'embodiment_heads')
  names = {path.stem for path in paths}
  assert names == {'dit_i2v_block1_window', 'dit_i2v_block2', 'dit_ti2v_global', 'embodiment_heads'}


def test_golden_forward_and_intermediates(golden_dit, case, request):
  forward = case.compiled(capture_intermediates=True, mutable=['intermediates'])
  (got_video, got_action), state = forward(**case.inputs())

  def check(name, got):
    component = f'DiT {name.removeprefix("sub/train/")}'
    parity.check(request, component, got, golden_dit[name], absolute=parity.OUTPUTS)

  def output(*path):
    """What the module gave at each of its calls."""
    captured = state['intermediates']
    for key in path:
      captured = captured[key]
    return captured['__call__']

  check('out/train/video', np.moveaxis(got_video, -1, 1))
  check('out/train/action', got_action)
  for name, x_BFHWD in zip(('clean', 'noisy'), output('patch_embedding')):
    check(f'sub/train/patch_embedding_{name}', np.moveaxis(x_BFHWD, -1, 1))
  for name in ('action_encoder', 'state_encoder', 'text_embedding', 'action_decoder'):
    check(f'sub/train/{name}', output(name)[0])
  check('sub/train/img_emb', output('image_embedding')[0])
  check('sub/train/head', np.reshape(output('head')[0], golden_dit['sub/train/head'].shape))

  # The reference embeds the time of every token, clean and noisy apart; ours of every group.
  group_T = case.layout(case.frames, case.chunks).group
  clean = group_T == 0
  for name in ('time_embedding', 'time_projection'):
    per_token = np.asarray(output(name)[0])[:, group_T].reshape(len(got_video), len(group_T), -1)
    for half, got in (('clean', per_token[:, clean]), ('noisy', per_token[:, ~clean])):
      want = golden_dit[f'sub/train/{name}_{half}'].reshape(len(got), -1, got.shape[-1])
      # Where states do not divide the actions, the reference embeds times that belong to no token.
      want = want[:, : got.shape[1]]
      parity.check(request, f'DiT {name}_{half}', got, want, absolute=parity.OUTPUTS)

  check('sub/train/block0_self_attn', output('blocks', 'self_attn')[0][0][0])
  check('sub/train/block0_cross_attn', output('blocks', 'cross_attn')[0][0])
  for i, x_BTD in enumerate(output('blocks')[0][0][0]):
    check(f'sub/train/block{i}', x_BTD)


def test_golden_gradients(golden_dit, case, request):
  inputs = case.inputs()

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    got_video, got_action = case.model.apply({'params': params}, **inputs)
    return jnp.mean(got_video**2) + jnp.mean(got_action**2)

  check = functools.partial(parity.check, request, relative=parity.GRADIENTS)
  value, gradients = loss(case.params)
  check('DiT loss', value, golden_dit['out/grad/loss'])
  gradients = rows.to_weights(case.rows, gradients)

  norms = dict(zip(golden_dit['out/grad/param_names'].tolist(), golden_dit['out/grad/param_l2']))
  for name, norm in norms.items():
    # Float32 rounding of gradients that vanish.
    check('DiT gradient norms', np.linalg.norm(gradients[name]), norm, absolute=1e-7)

  without = set(filter(None, np.ravel(golden_dit['out/grad/no_grad_names']).tolist()))
  assert norms.keys() | without == gradients.keys()
  for name in without:
    parity.check(request, 'DiT gradients that are not there', gradients[name], 0 * gradients[name])

  given = golden_dit.below('out/grad/')
  assert given.keys() & gradients.keys()
  for name in given.keys() & gradients.keys():
    check(f'DiT gradient of {name}', gradients[name], given[name])


def test_golden_forward_without_clean(golden_dit, case, request):
  inputs = {**case.inputs(), 'clean_BFHWC': None}
  for name, got in zip(('video', 'action'), case.compiled()(**inputs)):
    got = np.moveaxis(got, -1, 1) if name == 'video' else got
    parity.check(
      request,
      f'DiT without clean video: {name}',
      got,
      golden_dit[f'out/train_without_clean/{name}'],
      absolute=parity.OUTPUTS,
    )


@pytest.mark.golden_with('out/train_without_action/video')
def test_golden_forward_without_actions(golden_dit, case, request):
  """The reference's result is defined only where its window is off, and leaks; ours by default does
  neither.
  """
  inputs = case.inputs()
  video_alone = inputs['noisy'].replace(action_BAU=None, sigma_action_BA=None)
  got_video, got_action = case.compiled()(**inputs | dict(noisy=video_alone, body=None))
  assert got_action is None
  parity.check(
    request,
    'DiT without actions: video',
    np.moveaxis(got_video, -1, 1),
    golden_dit['out/train_without_action/video'],
    absolute=parity.OUTPUTS,
  )


def test_golden_masks(golden_dit, case, request):
  c = case.config
  teacher_forced = case.layout(case.frames, case.chunks)
  alone = case.layout(0, case.chunks)
  check = lambda name, got: parity.check(request, f'mask {name}', got, golden_dit[f'mask/{name}'])
  check('teacher_forcing', attention.training_mask(c, teacher_forced))
  check('without_clean', attention.training_mask(c, alone))
  # The builder that the reference does not use: no window, and of frame 0 and states each token
  # sees itself.
  is_lonely_T = (alone.frame == 0) | (alone.kind == masks.STATE)
  unused = masks.without_clean(
    alone, frames_per_chunk=c.frames_per_chunk, window_frames=case.frames, state_rule='self'
  )
  itself = np.eye(len(unused), dtype=bool)
  check('flex_static_builder', np.where(is_lonely_T[:, None], itself, unused))


def test_golden_cached_chunks(golden_dit, case, request):
  """Frame 0 is committed, then each chunk denoised and its clean frames committed, past the window
  if it is short.
  """
  c = case.config
  golden = golden_dit
  F = c.frames_per_chunk
  tokens = case.grid[0] * case.grid[1]
  # Control with the reference's unlimited window sees 21 frames at most.
  window = c.window_frames if c.history_rule == 'chunk' else wam.REFERENCE_GLOBAL_FRAMES
  commit = case.compiled('commit')
  denoise = case.compiled('denoise')
  part = lambda x, start, n: None if x is None else x[:, start : start + n]

  def check(name, got, want):
    want = golden[f'out/cached/{want}']
    parity.check(request, f'DiT cached: {name}', got, want, absolute=parity.OUTPUTS)

  def commit_frames(cache, start, frames, name):
    clean_BFHWC = part(case.clean, start, frames)
    condition = types.Condition(latents_BFHWC=part(case.condition, start, frames))
    # The reference gives a velocity of what it commits; here noise of level 0 asks for it.
    noisy = types.Noisy(
      video_BFHWC=clean_BFHWC, sigma_video_BF=np.zeros(clean_BFHWC.shape[:2], np.float32)
    )
    got, _ = denoise(cache, noisy, None, jnp.int32(start), prompt, condition)
    check('committed video', np.moveaxis(got, -1, 1), f'prefill_{name}/video')
    return commit(cache, clean_BFHWC, jnp.int32(start), prompt, condition)

  def denoise_chunk(cache, q):
    given = golden.below(f'in/cached/chunk{q}/')
    start = 1 + q * F
    noisy = types.Noisy(
      video_BFHWC=video(given['noisy_latents']),
      sigma_video_BF=given['timestep'] / 1000,
      action_BAU=given['noisy_action'],
      sigma_action_BA=given['timestep_action'] / 1000,
    )
    body = types.Body(
      proprio_BSX=part(golden['in/state'], q * case.states_per_chunk, case.states_per_chunk),
      embodiment_B=case.embodiment_B,
      valid_BA=np.ones(given['noisy_action'].shape[:2], bool),
    )
    condition = types.Condition(latents_BFHWC=part(case.condition, start, F))
    got_video, got_action = denoise(
      cache=cache,
      noisy=noisy,
      body=body,
      start_frame=jnp.int32(start),
      prompt=prompt,
      condition=condition,
    )
    check('video', np.moveaxis(got_video, -1, 1), f'chunk{q}/video')
    check('action', got_action, f'chunk{q}/action')

  prompt = case.compiled('prompt_kv')(golden['in/context'], golden['in/clip_feature'])
  cache = attention.KVCache.empty(
    layers=c.num_layers,
    batch=len(case.clean),
    heads=c.num_heads,
    slots=window * tokens,
    head_dim=c.head_dim,
    dtype='float32',
  )
  cache = commit_frames(cache, 0, 1, 'first')
  for q in range(case.chunks):
    start = 1 + q * F
    if q:
      cache = commit_frames(cache, start - F, F, f'chunk{q - 1}')
    length = int(cache.seen_from(start, 0, window, tokens).sum())
    parity.check(request, 'DiT cached: length', length, golden[f'out/cached/chunk{q}/cache_len'])
    denoise_chunk(cache, q)

  # The reference keeps the newest frames in order; ours lie in slots modulo the window.
  newest = np.arange(max(0, start - window), start)
  slots = np.ravel(newest[:, None] % window * tokens + np.arange(tokens))
  # Ours have heads before tokens, theirs tokens before heads.
  kv = np.stack([cache.k, cache.v], 1)[..., slots, :]
  check('keys and values', np.moveaxis(kv, 3, 4), 'kv_before_last_chunk')


def test_golden_rotary_embedding(golden_dit, case, request):
  c = case.config
  K = c.head_dim
  F = c.frames_per_chunk
  A = c.actions_per_chunk
  S = case.states_per_chunk
  q_BTNK = golden_dit['sub/rope_q_in']

  def check(component, got, name):
    want = golden_dit[f'sub/{name}']
    parity.check(request, component, got, want, absolute=parity.OUTPUTS)

  def turned(start, angles_TR):
    """Queries from `start` on; the reference has tokens before heads."""
    q_BNTK = np.swapaxes(q_BTNK[:, start : start + len(angles_TR)], 1, 2)
    return np.swapaxes(attention.rotate(q_BNTK, angles_TR), 1, 2)

  angles = dict(
    video=attention.video_angles(0, case.frames, *case.grid, K),
    action=attention.sequence_angles(0, case.chunks * A, K),
    state=attention.sequence_angles(0, case.chunks * S, K),
  )
  for name in ('video', 'action'):
    check('rotary tables', np.cos(angles[name]), f'freqs_{name}_cos')
    check('rotary tables', np.sin(angles[name]), f'freqs_{name}_sin')

  start = 0
  for name, part in angles.items():
    check('rotary embedding', turned(start, part), f'rope_q_{name}')
    start += len(part)

  for q in range(case.chunks):
    # An array, as in control, where one program serves all chunks.
    chunk = jnp.int32(q)
    here = np.concatenate(
      [
        attention.video_angles(1 + chunk * F, F, *case.grid, K),
        attention.sequence_angles(chunk * A, A, K),
        attention.sequence_angles(chunk * S, S, K),
      ]
    )
    assert len(here) == F * case.grid[0] * case.grid[1] + A + S
    check('rotary embedding, cached', turned(0, here), f'rope_q_cached_chunk{q}')


def test_golden_times(golden_dit, case, request):
  c = case.config
  time = golden_dit['sub/time_in']

  def check(name, got):
    want = golden_dit[f'sub/{name}']
    parity.check(request, f'DiT {name}', got, want, absolute=parity.OUTPUTS)

  embed = case.compiled(lambda model, x_BGS: model.time_embedding(x_BGS))
  project = case.compiled(lambda model, x_BGD: model.time_projection(jax.nn.silu(x_BGD)))
  sinusoid = layers.sinusoid(time, c.freq_dim, 'cos_sin')
  embedding = embed(sinusoid[None])
  projection = project(embedding)
  check('time_sinusoid', sinusoid)
  check('time_embedding_out', embedding[0])
  check('time_projection_out', projection[0].reshape(len(time), -1))
  check('action_time_encoding', layers.sinusoid(time[None], c.dim, 'sin_cos'))


def test_golden_embodiment_heads(golden_embodiment_heads, request):
  """The modules with more categories than the reference's model has, and another one for each
  sample.
  """
  golden, g = golden_embodiment_heads, golden_embodiment_heads.config
  config = cfg.ModelConfig(
    dim=g['dim'],
    num_heads=1,
    num_embodiments=g['num_embodiments'],
    action_dim=g['action_dim'],
    proprio_dim=g['max_state_dim'],
    action_hidden=g['hidden_size'],
  )
  names = ('action_encoder', 'state_encoder', 'action_decoder')
  of_heads = [row for row in table.rows(config) if row.path.startswith(names)]
  params = rows.to_params(of_heads, golden.below('w/'))
  embodiment_B = golden['in/embodiment_id']
  sigma_BA = golden['in/timestep'] / 1000

  def check(name, got):
    want = golden[f'out/{name}']
    parity.check(request, f'embodiment {name}', got, want, absolute=parity.OUTPUTS)

  def run(name, module, *inputs):
    check(name, module.apply({'params': params[name]}, *inputs, embodiment_B))

  run('action_encoder', action.ActionEncoder(config), golden['in/action'], sigma_BA)
  run('state_encoder', action.CategoryMLP(config, config.dim, 'embed'), golden['in/state'])
  decoder = action.CategoryMLP(config, config.action_dim, 'channels')
  run('action_decoder', decoder, golden['in/hidden'])
  check('time_encoding', layers.sinusoid(golden['in/timestep'], config.dim, 'sin_cos'))
