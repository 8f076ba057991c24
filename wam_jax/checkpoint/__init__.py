"""Checkpoints of a run (Orbax). Owns their layout on disk; knows nothing of flags or datasets.

A run that trains uses checkpoints.py, whoever reads its weights inference.py; reading.py and
errors.py are of both.

WORKDIR/checkpoints/STEP/ holds, each readable without the others:
  params, ema_params   the model, and averages of what is trained; no ema_params where none are kept
  optimizer            step and optimizer state
  iterator             JSON, where the data stands after exactly STEP batches; the same for any
                       number of hosts
  metadata             JSON, config, what the dataset says (statistics, embodiments), what the run
                       started from, the hash of its weights and those of the encoders around the
                       transformer, which are stored once; see frozen.py

and files.json, the sizes of all files of arrays.

Orbax writes STEP under another name and renames it when all of it is on disk, or on object storage
marks it by a last file, so what is listed is complete. A disk may still lose files later, which
integrity.py finds out; such a checkpoint is set aside and the one before is used. Whatever else
goes wrong while reading is tried again, and then stops the run with everything left as it is.
"""

from wam_jax.checkpoint.checkpoints import Checkpoints
from wam_jax.checkpoint.checkpoints import Restored
from wam_jax.checkpoint.errors import CheckpointError
from wam_jax.checkpoint.errors import DamageError
from wam_jax.checkpoint.errors import PassingError
from wam_jax.checkpoint.inference import load_for_inference
from wam_jax.checkpoint.inference import load_newest
from wam_jax.checkpoint.inference import load_weights
from wam_jax.checkpoint.inference import Trained
from wam_jax.checkpoint.reading import find_newest_metadata
from wam_jax.checkpoint.reading import list_mismatches
from wam_jax.checkpoint.reading import list_steps
from wam_jax.checkpoint.reading import load_metadata
from wam_jax.checkpoint.reading import read_together

__all__ = [
  'CheckpointError',
  'Checkpoints',
  'DamageError',
  'PassingError',
  'Restored',
  'Trained',
  'find_newest_metadata',
  'list_mismatches',
  'list_steps',
  'load_for_inference',
  'load_metadata',
  'load_newest',
  'load_weights',
  'read_together',
]
