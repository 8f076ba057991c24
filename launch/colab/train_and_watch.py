# ruff: noqa: E402
# %% [markdown]
# # Train a tiny world action model, watch it act and imagine
#
# Shows: demonstrations made in a simulated world, training with a live loss, then the robot in new
# scenes: the world, what the model sees above what it had imagined, its actions.
#
# Takes: 15 minutes of two CPU cores; `SIZE = 'smoke'` one, and learns nothing.
#
# One network denoises future video and robot actions together. Here it learns, from demonstrations
# that a scripted expert gives in a simulated world, to reach the object that the words name.
# Nothing is downloaded but the code. The same from a terminal is
# ```
# python -m wam_jax.train --config=configs/tiny.py --workdir=~/wam/tiny
# python -m wam_jax.evaluate --workdir=~/wam/tiny
# ```

# %%
SIZE = ''  # 'smoke' for a run of a minute that learns nothing.
WORKDIR = '~/wam/tiny'  # Run the notebook again to continue there.

# %% [setup]
# On Colab this installs about 1.5 GB in two or three minutes; elsewhere nothing. With a GPU
# 'sim,cuda13' (cuda12 for a driver below 580), with a TPU 'sim,tpu': some gigabytes more.
EXTRAS = 'sim'

# %%
import pathlib

from IPython.display import display
from IPython.display import Image
from IPython.display import Video

from configs import tiny
from launch.colab import commands
from wam_jax.evaluation import run

workdir = pathlib.Path(WORKDIR).expanduser()

# %% [markdown]
# ## What is trained
# `wam_jax/config/` and `docs/config.md` say what each of these means; any of them is changed by a
# flag of the command below, as `--config.steps=500`.

# %%
settings = tiny.get_config(SIZE)
print(settings.model, settings.flow, settings.optimizer, sep='\n')

# %% [markdown]
# ## Demonstrations, then training
# The demonstrations are simulated and written once. Stop the cell when you like and run it again to
# continue: the result is the same as that of a run that was never stopped.

# %%
config = 'configs/tiny.py:smoke' if SIZE == 'smoke' else 'configs/tiny.py'
commands.train(f'python -m wam_jax.train --config={config} --workdir={workdir}', workdir)

# %%
commands.draw_loss(workdir).savefig(workdir / 'loss.png', dpi=110)
display(Image(workdir / 'loss.png'))

# %% [markdown]
# ## Let it act
# New scenes, in closed loop: after every chunk of actions the model sees what really happened.

# %%
pictures = workdir / 'watch'
videos = 1 if SIZE == 'smoke' else 3
report = run.evaluate(run.Options(workdir=str(workdir), output=str(pictures), videos=videos))

# %% [markdown]
# The film shows the world; beside it what the model sees, above what it had imagined for that
# moment; below, the actions. Then frames that happened above those imagined, and the actions as
# asked for and as the robot took them.

# %%
for number in range(videos):
  display(Video(pictures / f'disc_{number}.mp4', embed=True, width=900))
  display(Image(pictures / f'disc_{number}.png', width=1100))
  display(Image(pictures / f'disc_{number}_actions.png', width=900))

# %% [markdown]
# ## Next
# Weights that are trained already: `weights/README.md`; what one or four passes of denoising are
# worth: `launch/colab/flash.ipynb`; a server and a robot: `launch/colab/serve_and_connect.ipynb`.
