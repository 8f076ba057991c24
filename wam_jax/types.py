"""What crosses module boundaries, and the project's one table of shape letters.

All of it is built by field name: two arrays of one shape cannot change places unseen, and a new
field has one home, whoever makes it and whoever reads it.

B batch · T query tokens · S key/value slots, or state tokens · L layers · D model width
M MLP width · N heads · K head dim · F latent frames · H, W latent rows, columns · C channels
P prompt tokens · V views · A action steps per chunk, an overlap with the next one included
U action dim · X proprio dim · D steps of that overlap, and of a prefix
E embodiments · R camera frames · Q chunks of a window · I, J pixel rows, columns
G groups of tokens with one noise level; in control, rows of a batch with guidance
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@flax.struct.dataclass(kw_only=True)
class Features:
  """What the frozen encoders make of a window, computed beforehand by `python -m data.encode`.

  Attributes:
    clean_BFHWC: latents of its frames.
    text_BPC: embedded prompt, or None where the text encoder is trained with the model.
    image_BIC: image-encoder tokens of frame 0, or None.
    condition_BFHWC: latents of frame 0 followed by grey, without the mask channels, or None.
  """

  clean_BFHWC: Array
  text_BPC: Array | None = None
  image_BIC: Array | None = None
  condition_BFHWC: Array | None = None


@flax.struct.dataclass(kw_only=True)
class Batch:
  """Windows of one conditioning frame and Q chunks, padded to fixed shapes.

  With `r` camera frames and `A` actions a chunk, chunk q covers the control steps of `action_BAU[:,
  q*A:(q+1)*A]`, starts at the pose `proprio_BQX[:, q]`, and shows the frames `1 + q*r ... (q+1)*r`;
  frame 0 is the observation at its start. Anything past the end of the episode repeats the last
  frame and is masked. With an overlap (`ModelConfig.action_overlap`) the last steps of a chunk's
  actions are the first of the next chunk's, and stand in both.

  Attributes:
    frames_BRIJ3: [B, 1 + Q*r, I, J, 3] uint8, RGB, the tiled views; None where `features` stand for
      them.
    action_BAU: [B, Q*A, U] float32, normalized; zero where masked.
    action_mask_BAU: [B, Q*A, U] bool, True on the real dimensions of real steps; all False for
      video-only samples.
    proprio_BQX: [B, Q, X] float32, normalized; zero on padded dimensions.
    chunk_mask_BQ: [B, Q] bool, True where the whole chunk lies inside the episode.
    prompt_ids_BP: [B, P] int32 token ids, 0 is padding.
    embodiment_B: [B] int32, index into `DataConfig.embodiments`.
    sample_B2: [B, 2] int32, (dataset of the mixture, sample in it): names a sample in an error
      message.
    given_BQ: [B, Q] int32, the number of actions that each chunk begins with which are given, not
      imitated; 0 where the data say nothing; None of models without an overlap.
    features: of the frozen encoders, where they were computed beforehand.
  """

  frames_BRIJ3: Array | None
  action_BAU: Array
  action_mask_BAU: Array
  proprio_BQX: Array
  chunk_mask_BQ: Array
  prompt_ids_BP: Array
  embodiment_B: Array
  sample_B2: Array
  given_BQ: Array | None = None
  features: Features | None = None


@flax.struct.dataclass(kw_only=True)
class Observation:
  """What the policy gets once per chunk.

  Attributes:
    frames_BRIJ3: [B, r, I, J, 3] uint8, the tiled views seen since the last call, at the spacing of
      training; on the first call after a reset all of them are the current frame. With
      `sample.history` 'window' [B, 1 + r, ...]: the frame of a chunk ago comes before them.
    proprio_BX: [B, X] float32, normalized, now.
  """

  frames_BRIJ3: Array
  proprio_BX: Array


@flax.struct.dataclass(kw_only=True)
class Task:
  """What robots are told when an episode starts.

  Attributes:
    prompt_ids_BP: [B, P] int32 token ids, 0 is padding.
    embodiment_B: [B] int32, index into `DataConfig.embodiments`.
    action_mask_BAU: [B, A, U] bool, real steps and dimensions of a chunk of each robot.
    negative_ids_BP: [B, P] int32 token ids of the prompt to move away from; with guidance alone.
  """

  prompt_ids_BP: Array
  embodiment_B: Array
  action_mask_BAU: Array
  negative_ids_BP: Array | None = None


@flax.struct.dataclass(kw_only=True)
class Prefix:
  """Actions that robots are committed to when the next chunk is asked for: its first ones.

  Attributes:
    action_BDU: [B, D, U] float32, normalized for the state of now; D is `action_overlap`.
    length_B: [B] int32 in [0, D], how many of them each robot is committed to; what lies beyond is
      not used.
  """

  action_BDU: Array
  length_B: Array


@flax.struct.dataclass(kw_only=True)
class Noisy:
  """What the model denoises, and how noisy it is: sigma is 0 for clean and 1 for noise.

  Attributes:
    video_BFHWC: [B, F, H, W, C] float32, noisy latents; None for actions alone.
    sigma_video_BF: [B, F] float32 in [0, 1], the noise level of each latent frame, or None.
    video_seen_BF: [B, F] bool, frames whose noisy tokens are seen; None where all are.
    action_BAU: [B, A, U] float32, noisy normalized actions; None for video alone.
    sigma_action_BA: [B, A] float32 in [0, 1], the noise level of each action step, or None.
  """

  video_BFHWC: Array | None = None
  sigma_video_BF: Array | None = None
  video_seen_BF: Array | None = None
  action_BAU: Array | None = None
  sigma_action_BA: Array | None = None


@flax.struct.dataclass(kw_only=True)
class Body:
  """The robots whose actions are denoised.

  Attributes:
    proprio_BSX: [B, S, X] float32, normalized states, those of each chunk at its start.
    embodiment_B: [B] int32, index into `DataConfig.embodiments`: whose weights the action modules
      use.
    valid_BA: [B, A] bool, real action steps; others, and the states of samples without any, are
      seen by nobody.
  """

  proprio_BSX: Array
  embodiment_B: Array
  valid_BA: Array


@flax.struct.dataclass(kw_only=True)
class Condition:
  """What the first frame says about latent frames; None where the model takes no such input.

  Attributes:
    latents_BFHWC: [B, F, H, W, 4 + C] float32: 4 channels of mask, 1 on frame 0; then latents of
      the video that is the first frame followed by grey.
    image_BIC: [B, I, C] tokens of the image encoder.
  """

  latents_BFHWC: Array | None = None
  image_BIC: Array | None = None


UNCONDITIONED = Condition()  # For models that are shown no first frame.
