"""Stored features: what the frozen encoders make of a dataset's windows, kept beside its episodes.

`python -m data.encode` writes, the pipeline reads. DATASET/wam_features_FINGERPRINT/ holds
  plan.json                      what the features are of and how they are stored; there from the
                                 start
  index.npz                      which windows and which prompts
  windows-I-of-N.array_record    a record per window and variant; there when whole
  prompts-I-of-N.array_record    a record per prompt, its real tokens only
  manifest.json                  the plan and the bytes of each file; there when all files are
The fingerprint is of everything that a feature depends on, so that a run finds its own features or
none.

A Wan VAE encodes the first frame of a window alone and all others in its light, so that latents
belong to a window, not to a step. Windows are therefore stored on a grid of anchors, and training
draws from these alone.

`describe` says what features depend on, `record_files` how they are written, `lookup` finds and
reads them.
"""
