# ruff: noqa: E402
# %% [markdown]
# # Look at your data before you train on it
#
# Shows: a LeRobot folder or an RLDS directory, the record of its robot, its card and contact sheet,
# and the windows that a model is shown of it: frames, normalized actions, words.
#
# Takes: ten seconds of two CPU cores for the small dataset that it makes where you have none; all
# episodes are read, so a large dataset takes longer, or a slice of it does.
#
# Most of what goes wrong with a robot's policy is in the data: a camera that lags, a gripper that
# counts the other way, an angle that wraps. This is where one sees it.

# %%
SIZE = ''  # 'smoke' is the same: the dataset is small.
# A LeRobot folder (with meta/info.json), or an RLDS directory (with dataset_info.json). Empty: a
# small dataset of a simulated arm is made.
SOURCE = ''
CONTROL_HZ = 15  # Steps a second, of RLDS that does not say when its steps were; 15 of that arm.
PLACE = '~/wam/look'  # What is made goes here.

# %% [setup]
# On Colab this installs about 1.6 GB in two or three minutes; elsewhere nothing.
EXTRAS = 'sim,lerobot'

# %%
import pathlib

import numpy as np
from IPython.display import display
from IPython.display import Image
from matplotlib.figure import Figure

from configs import your_robot
from launch.colab import commands
from wam_jax import config as cfg
from wam_jax import drawing
from wam_jax.data import pipeline
from wam_jax.data import record as record_lib

place = pathlib.Path(PLACE).expanduser()
place.mkdir(parents=True, exist_ok=True)
source = pathlib.Path(SOURCE).expanduser()
dataset = source

# %% [markdown]
# ## The dataset
# A LeRobot folder is converted once; RLDS is taken as it is. In either case a record of the robot
# is proposed from names and numbers, `embodiment.json` beside the data: which columns are its state
# and its actions, their units, its cameras and rates. Look through what was guessed and why.

# %%
if not SOURCE:
  dataset = place / 'tabletop/arm_place/1.0.0'
  made = f'--output={place} --embodiment=arm --tasks=place --episodes=20 --other_episodes=2'
  commands.run(f'python -m data.tabletop {made}')
elif (source / 'meta/info.json').exists():
  dataset = place / source.name / '1.0.0'
  commands.run(f'python -m data.from_lerobot --source={source} --output={dataset}')
if not (dataset / 'embodiment.json').exists():
  commands.run(f'python -m data.suggest --dataset={dataset} --control_hz={CONTROL_HZ}')

# %% [markdown]
# ## Its card
# Every record is read. What would spoil training ends this cell with an error that says what and
# where; the pictures below are there all the same. `docs/your_robot.md` tells what to correct.

# %%
card = place / 'card'
commands.run(f'python -m data.validate --dataset={dataset} --output={card}')

# %% [markdown]
# The contact sheet, then state and actions over time.

# %%
for picture in sorted(card.glob('*.png')):
  print(picture.name)
  display(Image(picture, width=1000))

# %% [markdown]
# ## What the model is shown
# The batches are those of training: `configs/your_robot.py` fits a model to the record. A window is
# one frame and some chunks after it, its cameras tiled into one picture as the record says.

# %%
config = cfg.from_config_dict(your_robot.get_config(str(dataset)))
data = pipeline.Data.open(config)
print(*data.notes, sep='\n')
(robot,) = data.robots.values()
batch = data.train_batches().read(0)
print(f'{robot.record.name}: frames {batch.frames_BRIJ3.shape}, actions {batch.action_BAU.shape}')

# %%
for frames_RIJ3 in batch.frames_BRIJ3[:4]:
  strip = np.concatenate(list(frames_RIJ3[::2][:9]), axis=1)
  commands.show(drawing.enlarge(strip, 96), place / 'window.png')

# %% [markdown]
# Actions as the network has them, normalized by quantiles of the dataset to about [-1, 1]; a line
# that leaves that range, or never moves, is worth a look. Grey lines separate chunks; nothing is
# drawn past the end of an episode, where there is nothing to learn.

# %%
names = record_lib.names(robot.record.action)
action_BAU = np.where(batch.action_mask_BAU, batch.action_BAU, np.nan)
figure = Figure(figsize=(10, 1.5 * len(names)), layout='constrained')
axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
for u, axis in enumerate(axes):
  for action_AU in action_BAU[:4]:
    axis.step(np.arange(len(action_AU)), action_AU[:, u])
  for start in range(0, action_BAU.shape[1], config.model.actions_per_chunk):
    axis.axvline(start, color='0.85', zorder=0)
  axis.set(ylabel=names[u], ylim=(-1.3, 1.3))
figure.savefig(place / 'actions.png', dpi=110)
display(Image(place / 'actions.png'))

# %% [markdown]
# ## Next
# Train on it, from nothing or from a base that knows other robots, evaluate on the held-out tenth,
# export: `docs/your_robot.md`; a lot of data: `docs/data.md`.
