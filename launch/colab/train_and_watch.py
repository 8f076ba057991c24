# ruff: noqa: E402
# %% [markdown]
# # Train a tiny World Action Model and watch it act and imagine
#
# One network denoises future video and robot actions together. Here it learns, from demonstrations
# that a scripted expert gives in a simulated world, to reach the object that the words name.
# Nothing is downloaded but the code. Two CPU cores take about fifteen minutes; the same from a
# terminal is
# ```
# python -m wam_jax.train --config=configs/tiny.py --workdir=~/wam/tiny
# python -m wam_jax.evaluate --workdir=~/wam/tiny
# ```

# %%
SIZE = ''  # 'smoke' for a run of a minute that learns nothing.
WORKDIR = '~/wam/tiny'  # Run the notebook again to continue there.
REPOSITORY = ''  # On Colab: what `git clone` takes. Elsewhere the notebook lies in its checkout.
# On Colab the project is installed with these; elsewhere nothing is. 'sim,cuda13' with a GPU
# (cuda12 for a driver below 580), 'sim,tpu' with a TPU.
EXTRAS = 'sim'

# %%
import os
import pathlib
import subprocess
import sys

if 'google.colab' in sys.modules and not pathlib.Path('wam_jax').exists():
  if not REPOSITORY:
    raise ValueError(
      'REPOSITORY is empty: write in the cell above what `git clone` takes to fetch the project, '
      'as https://HOST/NAME/wam_jax.git, and run both cells again.'
    )
  subprocess.run(['git', 'clone', '--quiet', REPOSITORY, 'wam_jax'], check=True)
  subprocess.run(
    [sys.executable, '-m', 'pip', 'install', '--quiet', '-e', f'wam_jax[{EXTRAS}]'], check=True
  )
here = pathlib.Path.cwd()
root = next(path for path in (here, here / 'wam_jax', *here.parents) if (path / 'configs').is_dir())
os.chdir(root)
sys.path.insert(0, str(root))

# %%
import json

from IPython.display import display
from IPython.display import Image
from IPython.display import Video
from matplotlib.figure import Figure

from configs import tiny
from wam_jax import config as cfg
from wam_jax import train
from wam_jax import workdir as workdir_lib
from wam_jax.data import prepare
from wam_jax.evaluation import run

# %% [markdown]
# ## What is trained
# Any of `settings` can be changed here; `wam_jax/config.py` says what each means.

# %%
settings = tiny.get_config(SIZE)
print(settings.model, settings.flow, settings.optimizer, sep='\n')
config = cfg.from_config_dict(settings)
workdir = workdir_lib.make_path(WORKDIR)

# %% [markdown]
# ## Demonstrations, then training
# The demonstrations are simulated and written once. Stop the cell when you like and run it again to
# continue: the result is the same as that of a run that was never stopped.

# %%
prepare.make_missing(config.data)
train.train(config, workdir)

# %%
lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
figure = Figure(figsize=(8, 3), layout='constrained')
axis = figure.subplots()
axis.plot([line['step'] for line in lines], [line['loss'] for line in lines])
axis.set(xlabel='step', ylabel='loss', yscale='log')
figure.savefig(workdir / 'loss.png')
display(Image(workdir / 'loss.png'))

# %% [markdown]
# ## Let it act
# New scenes, in closed loop: after every chunk of actions the model sees what really happened.
# Beside each episode is what it had imagined.

# %%
pictures = workdir / 'watch'
report = run.evaluate(run.Options(workdir=str(workdir), output=str(pictures), videos=2))
for number in range(2):
  display(Image(pictures / f'disc_{number}.png'))
  display(Video(pictures / f'disc_{number}.mp4', embed=True))
  display(Image(pictures / f'disc_{number}_actions.png'))
