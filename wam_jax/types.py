"""The arrays that cross module boundaries, and the project's one table of shape letters.

B batch · T query tokens · S key/value slots · L layers · D model width · M MLP width · N heads · K head dim
F latent frames · H, W latent rows, columns · C channels · P prompt tokens · V views · A action steps per chunk
U action dim · X proprio dim · E embodiments · R camera frames · Q chunks of a window · I, J pixel rows, columns
"""
from __future__ import annotations

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class Batch:
  """Windows of one conditioning frame and Q chunks, padded to fixed shapes.

  With `r` camera frames and `A` actions a chunk, chunk q covers the control steps of `action_BAU[:, q*A:(q+1)*A]`,
  starts at the pose `proprio_BQX[:, q]`, and shows the frames `1 + q*r ... (q+1)*r`; frame 0 is the observation
  at its start. Anything past the end of the episode repeats the last frame and is masked.

  Attributes:
    frames_BRIJ3: [B, 1 + Q*r, I, J, 3] uint8, RGB, the tiled views.
    action_BAU: [B, Q*A, U] float32, normalized; zero where masked.
    action_mask_BAU: [B, Q*A, U] bool, True on the real dimensions of real steps; all False for video-only samples.
    proprio_BQX: [B, Q, X] float32, normalized; zero on padded dimensions.
    chunk_mask_BQ: [B, Q] bool, True where the whole chunk lies inside the episode.
    prompt_ids_BP: [B, P] int32 token ids, 0 is padding.
    embodiment_B: [B] int32, index into `DataConfig.embodiments`.
    sample_B2: [B, 2] int32, (dataset of the mixture, sample in it): names a sample in an error message.
  """

  frames_BRIJ3: Array
  action_BAU: Array
  action_mask_BAU: Array
  proprio_BQX: Array
  chunk_mask_BQ: Array
  prompt_ids_BP: Array
  embodiment_B: Array
  sample_B2: Array


@flax.struct.dataclass
class Observation:
  """What the policy gets once per chunk.

  Attributes:
    frames_BRIJ3: [B, r, I, J, 3] uint8, the tiled views seen since the last call, at the spacing of training; on
      the first call after a reset all of them are the current frame.
    proprio_BX: [B, X] float32, normalized, now.
  """

  frames_BRIJ3: Array
  proprio_BX: Array
