# ruff: noqa: E402
# %% [markdown]
# # Bring a released checkpoint: what is in it, what it predicts, and back to PyTorch
#
# Shows: a DreamZero directory inspected and imported, the actions and the video that it predicts on
# recorded episodes, imagined beside real, and its export, compared bit for bit.
#
# Takes: a minute of two CPU cores with the stand-in, half with `SIZE = 'smoke'`. With a
# released one 45 GB of disk, three times, and an accelerator that holds the model.
#
# The released checkpoints are too large for a demo, so that without one **a small stand-in is made:
# every file and every rule of the 5B, with random weights that have learnt nothing**. All below
# works, and what it imagines is noise. Its episodes have DROID's cameras, joints and rates, and
# show the simulated arm.

# %%
SIZE = ''  # 'smoke' for one window, sampled in two steps without guidance.
CHECKPOINT = ''  # A directory as the official server opens it. Empty: the stand-in.
VOCABULARY = ''  # tokenizer.json or spiece.model of UMT5, where the directory has none.
DATASET = ''  # Recorded episodes of the same robot in RLDS. Empty: those of the stand-in.
PLACE = '~/wam/released'  # What is made goes here.

# %% [setup]
# On Colab this installs about 1.5 GB in two or three minutes; elsewhere nothing. With a GPU
# 'sim,umt5,cuda13' (cuda12 for a driver below 580), with a TPU 'sim,umt5,tpu'.
EXTRAS = 'sim,umt5'

# %%
import pathlib

import numpy as np
from etils import epath
from IPython.display import display
from IPython.display import Image

from launch.colab import commands
from wam_jax.evaluation import recorded
from wam_jax.evaluation import run
from wam_jax.interop.files import safetensors

place = pathlib.Path(PLACE).expanduser()
checkpoint = pathlib.Path(CHECKPOINT).expanduser()
dataset = DATASET
if not CHECKPOINT or not DATASET:
  episodes = 1 if SIZE == 'smoke' else 3
  commands.run(f'python -m data.stand_in --output={place}/stand_in --episodes={episodes}')
if not CHECKPOINT:
  checkpoint = place / 'stand_in/dreamzero'
  print('CHECKPOINT is empty: from here on random weights, which have learnt nothing')
dataset = DATASET or f'{place}/stand_in/droid/1.0.0'

# %% [markdown]
# ## What is in it
# Parts and parameters, rules, the robots with their cameras and statistics, and what is missing;
# headers alone are read.

# %%
commands.run(f'python -m wam_jax.convert inspect --source={checkpoint}')

# %% [markdown]
# ## Import
# A workdir, as training makes them: it can be evaluated, served, trained on. Of a LoRA checkpoint
# the base is named with `--base`. Weights pass one at a time, so that little memory is needed.

# %%
workdir = place / 'imported'
if not workdir.exists():
  words = f' --tokenizer={VOCABULARY}' if VOCABULARY else ''
  commands.run(f'python -m wam_jax.convert import --source={checkpoint} --output={workdir}{words}')

# %% [markdown]
# ## What it predicts
# Open loop: it sees the recorded frames chunk after chunk, and before each one predicts what comes:
# the actions, against those that were recorded and against standing still, and the video, against
# the last frame kept. Sampled as the checkpoint was released: sixteen steps, of which it computes
# eight.

# %%
windows = 1 if SIZE == 'smoke' else 2
pictures = place / 'predicted'
report = run.evaluate(
  run.Options(
    workdir=str(workdir),
    output=str(pictures),
    recorded=recorded.Choice(dataset=dataset, split='train'),
    episodes=windows,
    batch=1,
    steps=2 if SIZE == 'smoke' else None,
    guidance_scale=1.0 if SIZE == 'smoke' else None,
    videos=windows,
  )
)

# %% [markdown]
# Frames that happened above those imagined; then the actions, recorded and predicted, as far as the
# episode goes.

# %%
for picture in sorted(pictures.glob('window_*.png')):
  display(Image(picture, width=1000))

# %% [markdown]
# ## Back
# The official server opens what this writes. Nothing was trained, so every number must be the one
# that came.

# %%
exported = place / 'exported'
if not exported.exists():
  commands.run(f'python -m wam_jax.convert export --source={workdir} --output={exported}')
came, went = (
  safetensors.open_weights(epath.Path(path), 'model') for path in (checkpoint, exported)
)
same = [name for name in came if np.array_equal(came[name].read(), went[name].read())]
print(f'{len(same)} of {len(came)} arrays came back as they were, bit for bit')

# %% [markdown]
# ## Next
# Serve it to a robot: `launch/colab/serve_and_connect.ipynb`, with this workdir. Fine-tune it to
# yours: `launch/colab/fine_tune.ipynb`, with this workdir as `BASE`. Other layouts, and what cannot
# be said in them: `docs/pytorch.md`.
