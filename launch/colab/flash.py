# ruff: noqa: E402
# %% [markdown]
# # Flash: fewer passes, and what they cost
#
# Shows: success and time of a control step against the number of passes, of weights trained with
# Flash's noise: one pass of the video, then n of the actions alone; the film of an episode.
#
# Takes: two CPU cores half an hour, `SIZE = 'smoke'` a minute; no accelerator is needed.
#
# A world action model denoises video and actions together, and every pass over the video costs.
# Flash trains the video at high noise beside actions at any, so that one pass of the video serves
# several of the actions. The weights are in the repository (`weights/tiny_flash`); the task has two
# equally good targets, where a single pass averages them and misses both.

# %%
SIZE = ''  # 'smoke' for a minute: two ways, one scene, which measure nothing.
OUTPUT = '~/wam/flash'  # Of the figures and films.

# %% [setup]
# On Colab this installs about 1.5 GB in two or three minutes; elsewhere nothing. With a GPU
# 'sim,cuda13', with a TPU 'sim,tpu'.
EXTRAS = 'sim'

# %%
import json
import pathlib

from IPython.display import display
from IPython.display import Image
from IPython.display import Video
from matplotlib.figure import Figure

from launch.colab import commands
from wam_jax.evaluation import run

output = pathlib.Path(OUTPUT).expanduser()
output.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Every way to sample, in the same scenes
# `flash1` is one pass of everything; `pass1_actions4` one of the video and four of the actions;
# `act_only4` four of the actions without any video; `joint4` four of both. Times are medians of
# steps taken in turns, and ratios of the first way's.

# %%
ways = 'joint4,joint1,flash1,pass1_actions2,pass1_actions4,pass1_actions8,act_only4'
how = f'--ways={ways} --episodes=100 --batch=50'
if SIZE == 'smoke':
  how = '--ways=flash1,pass1_actions4 --episodes=1 --batch=1 --rounds=3'
table = output / 'sampling.json'
commands.run(f'python -m benchmarks.sampling --workdir=weights/tiny_flash {how} --json={table}')

# %% [markdown]
# ## Success against time
# Up and to the left is better. Bars are 95 % intervals: of a few scenes they are wide.

# %%
figure = Figure(figsize=(8, 4), layout='constrained')
axis = figure.subplots()
for name, way in json.loads(table.read_text())['ways'].items():
  below, above = way['rate'] - way['low'], way['high'] - way['rate']
  axis.errorbar(way['p50_ms'], way['rate'], [[below], [above]], fmt='o', capsize=3, label=name)
axis.set(xlabel='median time of a control step, ms', ylabel='success', ylim=(0, 1.03))
axis.set_xlim(left=0)
axis.legend()
figure.savefig(output / 'success_and_time.png', dpi=110)
display(Image(output / 'success_and_time.png'))

# %% [markdown]
# ## Watch it
# One pass of the video, four of the actions. The right half of the film: what the model sees, and
# what it had imagined for that moment, which after a single pass is a blur and does for acting.

# %%
episodes = 1 if SIZE == 'smoke' else 20
options = run.Options('weights/tiny_flash', output=str(output / 'watch'), episodes=episodes)
run.evaluate(options)
display(Video(output / 'watch' / 'disc_0.mp4', embed=True, width=900))
display(Image(output / 'watch' / 'disc_0.png', width=1100))

# %% [markdown]
# ## Your own
# `configs/tiny_flash.py` trains these weights from those of `configs/tiny.py`; at 14B
# `configs/droid_14b_flash.py`. Which ways a policy can be sampled by, and why not by the others:
# `docs/control.md`.
