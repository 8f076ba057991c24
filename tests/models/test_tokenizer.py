"""The patch tokenizer: causal in time, streaming, unit-variance latents, an exact inverse at full
width.
"""

from __future__ import annotations

import einops
import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax.models import tokenizer

T, S = 2, 2
FULL = T * S * S * 3
# Away from black and white, where `decode` clips.
FRAMES = np.random.default_rng(0).integers(60, 196, (3, 1 + 3 * T, 8, 12, 3)).astype(np.uint8)


def fit(channels, frames=FRAMES):
  return tokenizer.fit_patch_tokenizer(
    frames, cfg.TokenizerConfig(temporal=T, spatial=S, channels=channels)
  )


@pytest.fixture(scope='module')
def fitted():
  return fit(5)


def pixels(frames):
  return frames.astype(np.float32) / 127.5 - 1


def test_components_are_those_of_all_patches(fitted):
  """Gathered window by window, they are what one covariance of all of them gives."""
  frames = np.concatenate([FRAMES[:, :1], FRAMES], axis=1)
  order = 'B (F t) (H p) (W q) C -> (B F H W) (t p q C)'
  patches_NP = einops.rearrange(pixels(frames).astype(np.float64), order, t=T, p=S, q=S)
  np.testing.assert_allclose(fitted.mean_P, patches_NP.mean(0), atol=1e-6)
  covariance_PP = np.cov(patches_NP, rowvar=False)
  variance_C = np.linalg.eigvalsh(covariance_PP)[::-1][:5]
  got_CC = np.asarray(fitted.encode_PC).T @ covariance_PP @ np.asarray(fitted.encode_PC)
  np.testing.assert_allclose(got_CC, np.eye(5), atol=1e-4)  # float32 weights.
  spread_C = np.square(np.asarray(fitted.decode_CP)).sum(1)
  np.testing.assert_allclose(spread_C, variance_C, rtol=1e-5)


def test_frame_0_is_encoded_alone(fitted):
  latents = fitted.encode(FRAMES)
  assert latents.shape == (3, 4, 4, 6, 5)
  np.testing.assert_array_equal(latents[:, :1], fitted.encode_start(FRAMES[:, :1])[0])


def test_later_frames_do_not_change_earlier_latents(fitted):
  """Frame k belongs to latent frame ceil(k / T): changing it changes that one and no other."""
  latents = np.asarray(fitted.encode(FRAMES))
  for frame in range(FRAMES.shape[1]):
    changed = FRAMES.copy()
    changed[:, frame] = 255 - changed[:, frame]
    after = np.asarray(fitted.encode(changed))
    differs = np.any(after != latents, axis=(0, 2, 3, 4))
    group = -(-frame // T)
    np.testing.assert_array_equal(differs, np.arange(4) == group, err_msg=f'frame {frame}')


def test_streaming_equals_whole(fitted):
  first, stream = fitted.encode_start(FRAMES[:, :1])
  parts = [first]
  for k in range(3):
    start = 1 + k * T
    latents, stream = fitted.encode_more(stream, FRAMES[:, start : start + T])
    parts.append(latents)
  # Float32 sums may run in another order when fewer patches are multiplied at once.
  np.testing.assert_allclose(np.concatenate(parts, 1), fitted.encode(FRAMES), atol=1e-5)


def test_streaming_decode_equals_whole(fitted):
  latents = fitted.encode(FRAMES)
  first, stream = fitted.decode_start(latents[:, :1])
  second, stream = fitted.decode_more(stream, latents[:, 1:2])
  rest, _ = fitted.decode_more(stream, latents[:, 2:])
  parts = np.concatenate([first, second, rest], 1)
  np.testing.assert_allclose(parts, fitted.decode(latents), atol=1e-5)


def test_full_width_is_an_exact_inverse():
  full = fit(FULL)
  decoded = full.decode(full.encode(FRAMES))
  np.testing.assert_allclose(decoded, pixels(FRAMES), atol=1e-4)  # Float32 through two matrices.
  # Pixels that no fit has seen, too.
  unseen = np.random.default_rng(1).integers(0, 256, FRAMES.shape).astype(np.uint8)
  np.testing.assert_allclose(full.decode(full.encode(unseen)), pixels(unseen), atol=1e-4)


def test_latents_of_the_fit_have_mean_0_and_unit_covariance(fitted):
  latents_NC = np.asarray(fitted.encode(FRAMES), np.float64).reshape(-1, 5)
  np.testing.assert_allclose(latents_NC.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(np.cov(latents_NC, rowvar=False), np.eye(5), atol=1e-4)


def test_lost_detail_is_the_variance_of_the_dropped_components():
  """No linear map of that width loses less (Eckart-Young)."""
  still = np.concatenate([np.repeat(FRAMES[:, :1], T, 1), FRAMES[:, 1:]], 1)
  order = 'B (F t) (H p) (W q) C -> (B F H W) (t p q C)'
  patches_NP = einops.rearrange(pixels(still).astype(np.float64), order, t=T, p=S, q=S)
  singular = np.linalg.svd(patches_NP - patches_NP.mean(0), compute_uv=False)
  # From one to nearly all of the 24 numbers of a patch.
  for channels in (1, 6, 20):
    fitted = fit(channels)
    latents, stream = fitted.encode_more((), still)
    decoded, _ = fitted.decode_more(stream, latents)
    lost = np.asarray(decoded, np.float64) - pixels(still)
    dropped = singular[channels:]
    np.testing.assert_allclose((lost**2).sum(), (dropped**2).sum(), rtol=1e-4)


def test_decoded_pixels_stay_in_range(fitted):
  # Denoised latents may lie anywhere; pictures may not.
  decoded = fitted.decode(100 * fitted.encode(FRAMES))
  assert decoded.shape == FRAMES.shape
  np.testing.assert_array_equal([decoded.min(), decoded.max()], [-1, 1])


def test_large_patches_are_fitted_to_some_of_them():
  """Their numbers are too many for a covariance; what frames consist of is found all the same."""
  spatial = 16
  rng = np.random.default_rng(0)
  # Each patch a mixture of three pictures, each frame of its own.
  pictures_3P = rng.uniform(-40, 40, (3, spatial * spatial * 3))
  mixed = rng.uniform(-1, 1, (2, 1 + 8 * T, 2 * 3, 3)) @ pictures_3P + 128
  order = 'B R (H W) (p q C) -> B R (H p) (W q) C'
  frames = einops.rearrange(np.rint(mixed), order, H=2, p=spatial, q=spatial).astype(np.uint8)
  # Two frames of a patch, of three pictures each.
  config = cfg.TokenizerConfig(temporal=T, spatial=spatial, channels=6)
  assert T * spatial**2 * 3 > tokenizer._SMALL

  fitted = tokenizer.fit_patch_tokenizer(frames, config)
  latents = np.asarray(fitted.encode(frames))
  np.testing.assert_allclose(
    np.asarray(fitted.decode(latents)), pixels(frames), atol=1.5 / 127.5
  )  # Rounded pixels.
  again = tokenizer.fit_patch_tokenizer(frames, config)
  np.testing.assert_array_equal(fitted.encode_PC, again.encode_PC)  # Hosts must agree.


def test_more_channels_than_numbers_in_a_patch_raise():
  with pytest.raises(
    ValueError, match=f'channels={FULL + 1} exceeds the {FULL} numbers of a patch'
  ):
    fit(FULL + 1)


def test_frames_that_do_not_vary_enough_raise():
  # One grey for each window: few directions.
  gray = np.broadcast_to(FRAMES[:, :1, :1, :1, :1], FRAMES.shape)
  with pytest.raises(ValueError, match='vary in fewer than model.tokenizer.channels=5 directions'):
    fit(5, gray)
