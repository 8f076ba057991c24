"""The arrays that cross module boundaries, and the project's one table of shape letters.

B batch · T query tokens · S key/value slots · L layers · D model width · M MLP width
N heads · K head dim · F latent frames · H, W latent rows, columns · C channels
P prompt tokens · V views · A action steps per chunk · U action dim · X proprio dim
E embodiments · R camera frames · Q chunks of a window · I, J pixel rows, columns
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@flax.struct.dataclass
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


@flax.struct.dataclass
class Batch:
  """Windows of one conditioning frame and Q chunks, padded to fixed shapes.

  With `r` camera frames and `A` actions a chunk, chunk q covers the control steps of `action_BAU[:,
  q*A:(q+1)*A]`, starts at the pose `proprio_BQX[:, q]`, and shows the frames `1 + q*r ... (q+1)*r`;
  frame 0 is the observation at its start. Anything past the end of the episode repeats the last
  frame and is masked.

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
  features: Features | None = None


@flax.struct.dataclass
class Observation:
  """What the policy gets once per chunk.

  Attributes:
    frames_BRIJ3: [B, r, I, J, 3] uint8, the tiled views seen since the last call, at the spacing of
      training; on the first call after a reset all of them are the current frame.
    proprio_BX: [B, X] float32, normalized, now.
  """

  frames_BRIJ3: Array
  proprio_BX: Array
