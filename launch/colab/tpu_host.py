# ruff: noqa: E402
# %% [markdown]
# # A TPU host: does the 5B fit, how fast is it, and five steps of it
#
# Shows: the whole 5B planned for a slice that nobody holds yet, a training command checked before
# it runs, and five steps of the 5B with two of its thirty layers on the chips that are here.
#
# Takes: some minutes on a TPU v5e or v6e host, most of them compilation (no TPU was at hand to time
# it); on a CPU a minute with `SIZE = 'smoke'`, a narrow model that shows the commands and no speed.
#
# Depth alone is reduced: width, heads, tokens and chunks are those of the 5B, so that the time of a
# layer is that of a layer. The frozen encoders stay out, as in training at scale, where they run
# beforehand (`data.encode`): in place of the VAE stands a linear tokenizer with as many latents.

# %%
SIZE = ''  # 'smoke' where there is no TPU: a narrow model, and it says so.
SLICE = 'v5e:4x4'  # That the whole 5B is planned for. As v6e:2x4, v5p:2x2x2: docs/fits.md.
PLACE = '~/wam/tpu_host'  # Data and the run. Run the notebook again to continue there.

# %% [setup]
# On Colab this installs about 2 GB in three minutes; elsewhere nothing. The compiler of TPUs comes
# with `tpu`, and needs no TPU.
EXTRAS = 'sim,tpu'

# %%
import importlib.util
import json
import pathlib

from launch.colab import commands

place = pathlib.Path(PLACE).expanduser()
place.mkdir(parents=True, exist_ok=True)
if SIZE == 'smoke':
  print("SIZE = 'smoke': a narrow model on whatever is here, which measures nothing of a TPU")

# %% [markdown]
# ## What is here
# Asked by a process of its own: chips belong to one process at a time, and this notebook must not
# hold them.

# %%
ask = "import jax; d = jax.devices(); print('devices:', len(d), d[0].device_kind)"
looking = commands.start(f'python -c "{ask}"')
chips = int(commands.follow(looking, until='devices:').split()[0])
commands.follow(looking)

# %% [markdown]
# ## Does the whole 5B fit a slice?
# The compiler answers on any machine, with no TPU: memory a chip, and the time of a step to plan
# by. Not only for the slice that you have.

# %%
config = 'configs/droid_5b.py:smoke' if SIZE == 'smoke' else 'configs/droid_5b.py'
if importlib.util.find_spec('libtpu'):
  commands.run(f'python -m wam_jax.compile --config={config} --topology={SLICE} --plan')
else:
  print("The compiler of TPUs is not installed: pip install -e '.[aot]', and run this cell again.")

# %% [markdown]
# ## Five steps on these chips
# Each line changes a key of `configs/droid_5b.py`: two layers, weights from scratch, no stored
# features, a mesh over the chips that are here, a window a chip. The episodes have DROID's cameras
# and rates, and show a simulated arm.

# %%
flags = [
  f'--config={config}',
  '--config.steps=5',
  '--config.save_every=5',
  '--config.log_every=1',
  '--config.eval_every=0',
  f'--config.mesh.fsdp={chips}',
  f'--config.batch_size={chips}',
]
if SIZE == 'smoke':
  # Narrow already, on data of the simulated disc.
  make = f'python -m data.tabletop --output={place}/smoke --embodiment=disc --tasks=reach'
  commands.run(f'{make} --episodes=20')
  dataset = f'{place}/smoke/tabletop/disc_reach/1.0.0'
  commands.run(f'python -m data.statistics --dataset={dataset} --embodiment=tabletop_disc')
  flags += [f'--config.data.root={place}']
else:
  commands.run(f'python -m data.stand_in --output={place} --episodes=1')
  flags += [
    '--config.model.num_layers=2',
    # The data.
    f'--config.data.mixture.droid.path={place}/droid/1.0.0',
    '--config.data.features=off',
    # From scratch, without the frozen encoders.
    '--config.init_from=',
    '--config.model.tokenizer.kind=patch',
    '--config.model.tokenizer.fit_windows=4',
    '--config.model.text.kind=word',
    '--config.model.text.vocab=2048',
    '--config.model.image.kind=none',
    '--config.model.image_dim=0',
  ]
command = f'{" ".join(flags)} --workdir={place}/run'

# %% [markdown]
# Before it runs: mesh, compiler options, workdir, data, all that can be known beforehand.

# %%
commands.run(f'python -m wam_jax.check {command}')

# %%
commands.train(f'python -m wam_jax.train {command}', place / 'run')

# %% [markdown]
# ## How fast
# The first step compiles; the others are what counts. `mfu` is the share of the peak of these chips
# that the arithmetic of the model takes, told where the peak is known.

# %%
for line in (place / 'run/timing.jsonl').read_text().splitlines():
  print(json.loads(line))

# %% [markdown]
# ## Next
# From an empty cloud project to step 100 on a pod: `docs/pods.md`. Which slice holds what:
# `docs/fits.md`.
