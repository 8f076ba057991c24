"""The Wan VAEs: the official modules' numbers (golden files), and streaming, causality, shapes and
errors.
"""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax.interop.table import rows
from wam_jax.interop.table import vae as table
from wam_jax.models import vae

FULL = {
  'wan2_1': cfg.TokenizerConfig(kind='wan2_1', channels=16),
  'wan2_2': cfg.TokenizerConfig(kind='wan2_2', channels=48, vae=cfg.VAEConfig(160, 256)),
}
TINY = {
  kind: cfg.TokenizerConfig(
    kind=kind, channels=c.channels, vae=cfg.VAEConfig(4, 8, (1, 2, 2), 1, (True, True))
  )
  for kind, c in FULL.items()
}
# Frame 0 and three groups of four: a stream that forgets would show in the third.
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 13, 16, 24, 3)).astype(np.uint8)


@functools.cache
def tiny(kind):
  """Random biases and scales too."""
  model = jax.eval_shape(lambda key: vae.init(TINY[kind], key), jax.random.key(0))
  rng = np.random.default_rng(1)

  def draw(path, x):
    kind = path[-1].key
    inputs = x.size / x.shape[-1]
    spread = inputs**-0.5 if kind == 'w' else 0.1
    centre = 1 if kind == 'scale' else 0
    return (spread * rng.normal(size=x.shape) + centre).astype(np.float32)

  return model.replace(params=jax.tree_util.tree_map_with_path(draw, model.params))


@pytest.fixture(params=TINY)
def model(request):
  return tiny(request.param)


@functools.cache
def encoded(kind):
  return np.asarray(tiny(kind).encode(FRAMES))


def last(video):
  return np.asarray(video).transpose(0, 2, 3, 4, 1)


def test_golden_vae21(golden_vae21, request):
  compare(golden_vae21, request)


def test_golden_vae22(golden_vae22, request):
  compare(golden_vae22, request)


def compare(golden, request):
  """Each direction starts from the official numbers; frames that do not fill a group are ignored
  there.
  """
  g = golden.config
  sizes = cfg.VAEConfig(
    encoder_dim=g['dim'],
    decoder_dim=g['dec_dim'] or g['dim'],
    multipliers=tuple(g['dim_mult']),
    blocks=g['num_res_blocks'],
    temporal_down=tuple(g['temporal_downsample']),
  )
  kind = {'21': 'wan2_1', '38': 'wan2_2'}[str(g['kind'])]
  c = cfg.TokenizerConfig(kind=kind, channels=g['z_dim'], vae=sizes)
  model = vae.WanVAE(
    params=rows.to_params(table.rows(c, 'wan'), golden.below('w/')),
    config=c,
    mean_std_2C=np.stack([golden['stats/mean'], golden['stats/std']]),
  )
  frames = last(golden['in/video'])
  groups = (frames.shape[1] - 1) // model.temporal
  latents = model.encode(frames[:, : 1 + groups * model.temporal])
  official = last(golden['out/latent'])
  got = {
    'latent': latents,
    'latent_unnormalised': model.unnormalise(latents),
    'latent_first_frame_only': model.encode_start(frames[:, :1])[0],
    'decoded_unclamped': model.decode_unclamped(official),
    'decoded': model.decode(official),
  }
  want = golden.below('out/')
  assert got.keys() == want.keys()
  for name in want:
    parity.check(
      request, f'VAE {c.kind} {name}', got[name], last(want[name]), absolute=parity.ENCODERS
    )
  np.testing.assert_array_equal(model.mean_std_2C, np.float32(vae.RELEASED[c.channels]))


def test_pieces_equal_the_whole_exactly(model):
  """However the frames come in; the first latent frame is that of the first frame alone."""
  want = encoded(model.config.kind)
  # A group at a time, uneven pieces, all at once.
  for ends in ((5, 9, 13), (9, 13), (13,)):
    latents, stream = model.encode_start(FRAMES[:, :1])
    parts, start = [latents], 1
    for end in ends:
      latents, stream = model.encode_more(stream, FRAMES[:, start:end])
      parts.append(latents)
      start = end
    np.testing.assert_array_equal(np.concatenate(parts, 1), want)


def test_decoded_pieces_equal_the_whole_exactly(model):
  latents = encoded(model.config.kind)
  for ends in ((2, 3, 4), (3, 4)):
    frames, stream = model.decode_start(latents[:, :1])
    parts, start = [frames], 1
    for end in ends:
      frames, stream = model.decode_more(stream, latents[:, start:end])
      parts.append(frames)
      start = end
    np.testing.assert_array_equal(np.concatenate(parts, 1), model.decode(latents))


def test_streams_are_compiled_once(model):
  chex.clear_trace_counter()  # Chex counts by the function's name, over both kinds.

  @jax.jit
  @chex.assert_max_traces(n=1)  # A second trace would stall the robot.
  def step(model, stream, frames_BRIJ3):
    latents, encoding = model.encode_more(stream[0], frames_BRIJ3)
    frames, decoding = model.decode_more(stream[1], latents)
    return frames, (encoding, decoding)

  latents, encoding = model.encode_start(FRAMES[:, :1])
  stream = encoding, model.decode_start(latents)[1]
  for k in range(3):
    frames, after = step(model, stream, FRAMES[:, 1 + 4 * k : 5 + 4 * k])
    chex.assert_trees_all_equal_shapes_and_dtypes(stream, after)
    stream = after
  np.testing.assert_allclose(frames, model.decode(encoded(model.config.kind))[:, -4:], atol=1e-5)


def test_later_frames_do_not_change_earlier_latents(model):
  want = encoded(model.config.kind)
  # Frame 0, and both ends of the groups after it.
  for frame in (0, 1, 4, 5, 12):
    changed = FRAMES.copy()
    changed[:, frame] = 255 - changed[:, frame]
    after = np.asarray(model.encode(changed))
    differs = np.any(after != want, axis=(0, 2, 3, 4))
    group = -(-frame // 4)
    only_its_own = np.arange(group + 1) == group
    np.testing.assert_array_equal(differs[: group + 1], only_its_own, err_msg=f'frame {frame}')


def test_later_latents_do_not_change_earlier_frames(model):
  latents = encoded(model.config.kind)
  want = np.asarray(model.decode_unclamped(latents))
  for k in range(4):
    changed = latents.copy()
    changed[:, k] += 1
    after = np.asarray(model.decode_unclamped(changed))
    differs = np.any(after != want, axis=(0, 2, 3, 4))
    first = 1 + 4 * (k - 1) if k else 0
    # Later frames may change: the decoder is causal, and remembers.
    assert not differs[:first].any()
    assert differs[first : 1 + 4 * k].all()


def test_samples_of_a_batch_do_not_meet(model):
  latents = encoded(model.config.kind)
  for b in range(2):
    # One sample alone may be convolved in another order of sums.
    np.testing.assert_allclose(model.encode(FRAMES[b : b + 1])[0], latents[b], atol=1e-5)
    alone = model.decode(latents[b : b + 1])[0]
    np.testing.assert_allclose(alone, model.decode(latents)[b], atol=1e-5)


def test_bytes_and_floats_are_the_same_frames(model):
  as_floats = FRAMES.astype(np.float32) / 127.5 - 1
  want = encoded(model.config.kind)
  np.testing.assert_allclose(model.encode(as_floats), want, atol=1e-5)


def test_decoded_frames_are_clamped(model):
  # Larger than those of any picture, so that there is something to clamp.
  latents = 10 * encoded(model.config.kind)
  free = np.asarray(model.decode_unclamped(latents))
  assert np.abs(free).max() > 1
  np.testing.assert_array_equal(model.decode(latents), free.clip(-1, 1))
  np.testing.assert_array_equal(model.decode_start(latents[:, :1])[0], free[:, :1].clip(-1, 1))


def test_other_statistics_of_latents(model):
  plain = model.unnormalise(encoded(model.config.kind))
  C = model.config.channels
  mean_std_2C = np.stack([np.linspace(-1, 1, C), np.linspace(1, 2, C)])
  other = model.replace(mean_std_2C=mean_std_2C)
  mean_C, std_C = mean_std_2C
  latents = other.encode(FRAMES)
  np.testing.assert_allclose(latents, (plain - mean_C) / std_C, atol=1e-5)
  # On the way back they cancel out.
  want = model.decode(encoded(model.config.kind))
  np.testing.assert_allclose(other.decode(latents), want, atol=1e-5)


def test_bfloat16_parameters_and_computation(model):
  half = model.replace(
    params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params),
    config=dataclasses.replace(model.config, dtype='bfloat16'),
  )
  want = encoded(model.config.kind)
  latents, stream = half.encode_start(FRAMES[:, :1])
  assert latents.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(stream)} == {jnp.dtype(jnp.bfloat16)}
  root_mean_square = lambda x: np.sqrt(np.mean(x**2))
  got = half.encode(FRAMES)
  # Eight bits of mantissa through some twenty layers.
  assert 0 < root_mean_square(got - want) < 0.03 * root_mean_square(want)
  frames, want = half.decode_unclamped(want), model.decode_unclamped(want)
  assert 0 < root_mean_square(frames - want) < 0.03 * root_mean_square(want)


@pytest.mark.parametrize(
  'kind, size, latents',
  [('wan2_1', (352, 640), (44, 80, 16)), ('wan2_2', (160, 320), (10, 20, 48))],
)
def test_the_released_sizes_encode_33_frames_to_9(kind, size, latents):
  """33 frames are 9 latent frames and back; nothing is computed or allocated."""
  model = jax.eval_shape(lambda key: vae.init(FULL[kind], key), jax.random.key(0))
  assert (model.temporal, model.spatial) == (4, {'wan2_1': 8, 'wan2_2': 16}[kind])
  video = jax.ShapeDtypeStruct((1, 33, *size, 3), jnp.uint8)
  encoded = jax.eval_shape(vae.WanVAE.encode, model, video)
  assert (encoded.shape, encoded.dtype) == ((1, 9, *latents), jnp.float32)
  decoded = jax.eval_shape(vae.WanVAE.decode, model, encoded)
  assert (decoded.shape, decoded.dtype) == (video.shape, jnp.float32)


def test_wrong_frames_raise(model):
  with pytest.raises(ValueError, match='6 frames after the first one must be a multiple of 4'):
    model.encode(FRAMES[:, :7])
  with pytest.raises(
    ValueError, match=f'Frames of 15 x 24 pixels must have multiples of {model.spatial}'
  ):
    model.encode(FRAMES[:, :, :15])


def test_wrong_configs_raise(model):
  def initialise(**changes):
    sizes = dataclasses.replace(TINY['wan2_2'].vae, decoder_dim=4, **changes)
    return vae.init(cfg.TokenizerConfig(kind='wan2_2', vae=sizes), jax.random.key(0))

  with pytest.raises(
    ValueError, match=r'temporal_down=\(True,\) must have one entry for each of the 3 multipliers'
  ):
    initialise(temporal_down=(True,))
  with pytest.raises(ValueError, match='cannot share 4 numbers equally among 8 channels'):
    initialise(multipliers=(1, 2), temporal_down=(True,))
  # The released statistics are found by the number of channels.
  nameless = model.replace(config=dataclasses.replace(model.config, channels=6))
  with pytest.raises(
    ValueError, match='No mean .* were released for channels=6, only for .16, 48.; give mean_std'
  ):
    nameless.unnormalise(np.zeros(6))
