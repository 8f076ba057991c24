"""The transformer against the official PyTorch modules, on the golden files (tests/golden/README.md).

Tolerances are those the files suggest for float32: 2e-4 for outputs, 1e-3 relative for gradients, masks exactly.
"""
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax.interop import table
from wam_jax.models import attention
from wam_jax.models import wam

GOLDEN = sorted((pathlib.Path(__file__).parents[1] / 'golden').glob('dit_*.npz'))


def load(path):
  data = np.load(path)
  g = json.loads(str(data['config_json']))
  i2v = g['model_type'] == 'i2v'
  config = cfg.ModelConfig(
      dim=g['dim'], mlp_dim=g['ffn_dim'], num_heads=g['num_heads'], num_layers=g['num_layers'],
      patch=g['patch_size'][1], image_condition=i2v and g['concat_first_frame_latent'],
      image_dim=g['image_embed_dim'], image_tokens=g['image_tokens'], freq_dim=g['freq_dim'],
      action_dim=g['action_dim'], proprio_dim=g['max_state_dim'], action_hidden=g['hidden_size'],
      frames_per_chunk=g['num_frame_per_block'], actions_per_chunk=g['num_action_per_block'],
      max_chunks=g['max_chunk_size'], predict_first_frame=True, state_rule='reference',
      tokenizer=cfg.TokenizerConfig(channels=g['out_dim']))
  weights = {k[2:]: data[k] for k in data.files if k.startswith('w/')}
  return data, config, table.to_params(weights, config)


def video(x):
  return jnp.asarray(x).transpose(0, 2, 3, 4, 1)


def training_inputs(data, config):
  y = video(data['in/y']) if 'in/y' in data.files else None
  drop = config.frames_per_chunk
  return dict(
      clean_BFHWC=video(data['in/clean_latents'])[:, :-drop], noisy_BFHWC=video(data['in/noisy_latents']),
      sigma_video_BF=data['in/timestep'] / 1000, noisy_action_BAU=data['in/noisy_action'],
      sigma_action_BA=data['in/timestep_action'] / 1000, proprio_BQX=data['in/state'], text_BPC=data['in/context'],
      embodiment_B=np.zeros(len(data['in/state']), np.int32),
      action_valid_BA=np.ones(data['in/noisy_action'].shape[:2], bool), condition_BFHWC=y,
      image_BIC=data['in/clip_feature'] if config.image_dim else None)


@pytest.fixture(params=GOLDEN, ids=lambda p: p.stem, scope='module')
def golden(request):
  return load(request.param)


def test_files_are_there():
  assert [p.stem for p in GOLDEN] == ['dit_i2v_block1_window', 'dit_i2v_block2']


def test_teacher_forced_outputs(golden):
  data, config, params = golden
  inputs = training_inputs(data, config)
  got_video, got_action = jax.jit(wam.WorldActionModel(config).apply)({'params': params}, **inputs)
  np.testing.assert_allclose(got_video, video(data['out/train/video']), atol=2e-4)
  np.testing.assert_allclose(got_action, data['out/train/action'], atol=2e-4)


def test_gradients(golden):
  data, config, params = golden
  inputs = training_inputs(data, config)

  def loss(params):
    v, a = wam.WorldActionModel(config).apply({'params': params}, **inputs)
    return jnp.mean(v ** 2) + jnp.mean(a ** 2)

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, data['out/grad/loss'], rtol=1e-3)
  norms = dict(zip(data['out/grad/param_names'], data['out/grad/param_l2']))
  for row in table.rows(config):
    leaf = grads
    for part in row.path.split('/'):
      leaf = leaf[part]
    names = [row.torch.format(i) for i in range(config.num_layers)] if '{}' in row.torch else [row.torch]
    for name, g in zip(names, leaf if '{}' in row.torch else [leaf]):
      np.testing.assert_allclose(np.linalg.norm(g), norms[name], rtol=1e-3, atol=1e-7, err_msg=name)


def test_mask(golden):
  data, config, _ = golden
  F, (H, W) = data['in/noisy_latents'].shape[2], data['in/noisy_latents'].shape[3:]
  Q = (F - 1) // config.frames_per_chunk
  layout = masks.training_layout(F, range(F), H * W // config.patch ** 2, config.frames_per_chunk,
                                 config.actions_per_chunk, data['in/state'].shape[1] // Q, Q)
  got = masks.teacher_forcing(layout, frames_per_chunk=config.frames_per_chunk,
                              window_frames=1 + config.max_chunks * config.frames_per_chunk, state_rule='self')
  np.testing.assert_array_equal(got, data['mask/teacher_forcing'])


def test_cached_chunks():
  data, config, params = load(next(p for p in GOLDEN if p.stem == 'dit_i2v_block2'))
  inputs, c = training_inputs(data, config), config
  model = wam.WorldActionModel(c)
  apply = lambda method, *args: model.apply({'params': params}, *args, method=method)
  prompt = apply(model.prompt_kv, inputs['text_BPC'], inputs['image_BIC'])
  clean, y = video(data['in/clean_latents']), inputs['condition_BFHWC']
  B, F, H, W, _ = clean.shape
  Q, r = (F - 1) // c.frames_per_chunk, c.frames_per_chunk
  part = lambda x, a, b: None if x is None else x[:, a:b]
  cache = attention.KVCache.empty(c.num_layers, B, c.num_heads, F * H * W // c.patch ** 2, c.head_dim, jnp.float32)
  cache = apply(model.commit, cache, clean[:, :1], 0, prompt, part(y, 0, 1))
  states = data['in/state'].shape[1] // Q
  for q in range(Q):
    s = 1 + q * r
    if q:
      cache = apply(model.commit, cache, clean[:, s - r:s], s - r, prompt, part(y, s - r, s))
    get = lambda name, q=q: data[f'in/cached/chunk{q}/{name}']
    got_video, got_action = apply(
        model.denoise, cache, video(get('noisy_latents')), get('timestep') / 1000, get('noisy_action'),
        get('timestep_action') / 1000, data['in/state'][:, q * states:(q + 1) * states], s, prompt,
        inputs['embodiment_B'], np.ones(get('noisy_action').shape[:2], bool), part(y, s, s + r))
    np.testing.assert_allclose(got_video, video(data[f'out/cached/chunk{q}/video']), atol=2e-4)
    np.testing.assert_allclose(got_action, data[f'out/cached/chunk{q}/action'], atol=2e-4)
