# ruff: noqa: E402
# %% [markdown]
# # Serve a policy, and let a robot act over the wire
#
# Shows: a policy server, a client that knows its address alone, a simulated robot that acts by what
# it is sent, and films of what it did.
#
# Takes: half a minute of two CPU cores, hardly less with `SIZE = 'smoke'`.
#
# The policy is in the repository (`weights/tiny`). The server is a process of its own, as it would
# be on the machine with the chip; the client needs no JAX and would be on the robot.

# %%
SIZE = ''  # 'smoke' for two scenes.
FILMS = '~/wam/served'  # The server writes a film of each episode.

# %% [setup]
# On Colab this installs about 1.5 GB in two or three minutes; elsewhere nothing. With a GPU
# 'sim,serve,cuda13', with a TPU 'sim,serve,tpu'.
EXTRAS = 'sim,serve'

# %%
import pathlib
import urllib.request

from IPython.display import display
from IPython.display import Video

from launch.colab import commands
from launch.robots import tabletop
from wam_jax.client import broker as broker_lib
from wam_jax.client import policy as policy_lib
from wam_jax.envs import worlds

films = pathlib.Path(FILMS).expanduser()

# %% [markdown]
# ## The server
# It compiles all that an episode runs and rehearses one before it opens its port, so that no robot
# waits for a compiler. Port 0 is any that is free.

# %%
server = commands.start(
  f'python -m wam_jax.serve --workdir=weights/tiny --port=0 --health_port=0 --films={films} '
  '--together=1 --imagine=always'
)
page = commands.follow(server, until='page, health, readiness, metrics: ')
uri = commands.follow(server, until='policy: ')

# %% [markdown]
# ## The client
# What the server says of the robot: what it wants to be sent, and what it answers.

# %%
policy = policy_lib.RemotePolicy(uri)
for key, value in policy.description.items():
  print(f'{key:20} {value}')

# %% [markdown]
# ## One question
# An observation goes out, a chunk of actions comes back.

# %%
world = worlds.make(policy.robot, ('reach',))
observation = world.reset(seed=0)
print({key: getattr(value, 'shape', value) for key, value in observation.items()})
answer = policy.infer({**observation, 'prompt': world.instruction})
print(world.instruction, answer['actions'].shape, answer['server_timing'], sep='\n')
policy.reset()

# %% [markdown]
# ## A robot
# `ChunkBroker` asks when a chunk is used up; `run_episode` is what any robot's loop would be:
# observe, act, until it is done.

# %%
robot = broker_lib.ChunkBroker(policy)
for seed in range(2 if SIZE == 'smoke' else 10):
  print(f'scene {seed}: {"done" if tabletop.run_episode(world, robot, seed) else "not done"}')

# %% [markdown]
# ## What the server saw
# Its counters, and the films it has written: what was seen beside what was imagined. A page to
# watch live is at the first address it printed; on Colab
# `google.colab.output.serve_kernel_port_as_iframe(PORT)` shows it.

# %%
metrics = urllib.request.urlopen(f'{page}/metrics').read().decode()
print(*[line for line in metrics.splitlines() if not line.startswith('#')][:20], sep='\n')

# %%
policy.close()
commands.stop(server)
newest = sorted(films.glob('**/*.mp4'), key=lambda path: path.stat().st_mtime)
for film in newest[-2:]:
  print(film.name)
  display(Video(film, embed=True, width=900))

# %% [markdown]
# ## On a real robot
# `launch/robots/lerobot.py` drives a LeRobot `Robot` by the same client. Keys, TLS, many robots at
# a time, recording what they do: `docs/serving.md`; fast enough for yours: `docs/control.md`.
