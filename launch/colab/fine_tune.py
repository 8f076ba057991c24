# ruff: noqa: E402
# %% [markdown]
# # Fine-tune: a robot that the base has never seen
#
# Shows: a trained base that goes on with a few episodes of a new robot, once by low-rank adapters
# (LoRA) and once with all its weights, and what each predicts for held-out episodes.
#
# Takes: five minutes of two CPU cores; `SIZE = 'smoke'` one, and learns nothing.
#
# The base is in the repository (`weights/tiny`): a disc that reaches for what the words name. The
# new robot is a simulated arm of 60 episodes, whose joints and gripper have nothing in common with
# the disc's velocities. Its rows of the action modules start new; all else goes on from the base.

# %%
SIZE = ''  # 'smoke' for four steps, which learn nothing.
PLACE = '~/wam/fine_tune'  # Data and runs. Run the notebook again to continue there.
BASE = 'weights/tiny'  # Any run, or an import of released weights.

# %% [setup]
# On Colab this installs about 1.5 GB in two or three minutes; elsewhere nothing. With a GPU
# 'sim,cuda13', with a TPU 'sim,tpu': some gigabytes more.
EXTRAS = 'sim'

# %%
import dataclasses
import json
import pathlib

from IPython.display import display
from IPython.display import Image

from launch.colab import commands
from wam_jax.data import embodiments
from wam_jax.evaluation import run

place = pathlib.Path(PLACE).expanduser()
place.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The new robot
# Its episodes, and beside them its record. The base predicts 8 actions a chunk and the arm has 15
# steps a second, so a chunk is 8/15 s, of two camera frames. For your own LeRobot folder
# `data.from_lerobot` proposes the record: `launch/colab/look_at_your_data.ipynb`.

# %%
dataset = place / 'tabletop/arm_reach/1.0.0'
made = f'--output={place} --embodiment=arm --tasks=reach --episodes=60 --other_episodes=2'
commands.run(f'python -m data.tabletop {made}')
arm = embodiments.resolve('tabletop_arm', str(dataset))
record = dataclasses.replace(arm, name='my_arm', chunk_s=8 / 15, video_fps=3.75)
(dataset / 'embodiment.json').write_text(json.dumps(dataclasses.asdict(record), indent=1))

# %% [markdown]
# ## With adapters
# `lora` trains factors of rank 4 beside each kernel, and the action modules; evaluation and export
# see merged weights. What is trained, and where each robot has its row, is printed.

# %%
steps = 4 if SIZE == 'smoke' else 600
flags = (
  f'--config=configs/your_robot.py:{dataset},{BASE} --config.steps={steps} '
  f'--config.save_every={steps} --config.eval_every=0 --config.log_every=2 '
  '--config.optimizer.learning_rate=1e-3 --config.optimizer.ema_decay=0.98'
)
lora = '--config.trainable=lora --config.model.lora.rank=4'
commands.train(f'python -m wam_jax.train {flags} {lora} --workdir={place}/lora', place / 'lora')

# %% [markdown]
# ## With all weights

# %%
commands.train(f'python -m wam_jax.train {flags} --workdir={place}/all', place / 'all')

# %% [markdown]
# ## What they predict
# Open loop, on the held-out tenth of the episodes: the error of the actions against that of
# standing still, and imagined video against the last frame kept.

# %%
windows = 2 if SIZE == 'smoke' else 100
for name in ('lora', 'all'):
  print(f'--- {name}')
  options = run.Options(
    workdir=str(place / name), output=str(place / name / 'seen'), episodes=windows, videos=1
  )
  run.evaluate(options)
  display(Image(place / name / 'seen/window_0.png', width=1000))
  display(Image(place / name / 'seen/window_0_actions.png', width=900))

# %% [markdown]
# ## With released weights
# `python -m wam_jax.convert import` makes a base of DreamZero's or Wan's checkpoints; then the same
# commands. `configs/yam_fewshot.py` is the paper's few-shot robot, two arms and 30 minutes of play;
# `docs/pytorch.md` goes there and back.
