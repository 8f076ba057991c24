"""Films of the shipped policies, and the page that shows them: docs/gallery.md.

python -m docs.make.gallery [--workdirs=weights/tiny,...] [--scenes=0,1]

Scenes are chosen by number before anyone knows what becomes of them, the same ones of every robot;
the page shows all of them, and counts.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from wam_jax import checkpoint
from wam_jax import cli
from wam_jax.control import agent as agent_lib
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import closed_loop

with cli.needs('sim'):
  import imageio.v2 as imageio

  from wam_jax import drawing
  from wam_jax.envs import tabletop
  from wam_jax.evaluation import film
  from wam_jax.evaluation import pictures

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ('tiny', 'tiny_flash', 'tiny_tasks')
_SIZE = 288  # Rows of the scene in a film.
_MOST_HZ = 10.0  # Pictures a second; a faster robot's are thinned out.

_WORKDIRS = flags.DEFINE_list(
  'workdirs', [f'weights/{name}' for name in SHIPPED], 'Workdirs whose policies act.'
)
_SCENES = flags.DEFINE_list('scenes', ['0', '1'], 'Numbers of scenes, as 0,1: seeds of the world.')
_OUTPUT = flags.DEFINE_string(
  'output', str(ROOT / 'docs'), 'Directory of gallery.md and pictures/.'
)

_HEAD = """# Gallery

Every film: the world as people see it; beside it what the model sees, above what it had imagined
for that moment; below, the actions, pale those of the chunk under way. Scenes are chosen by number,
whatever became of them. The weights are in [weights/](../weights/README.md), with their figures;
this page and its pictures are made by `python -m docs.make.gallery`.

![A disc, an arm, a cart with a pole and a human hand](pictures/gallery/robots.webp)
"""


@dataclasses.dataclass(frozen=True)
class Shown:
  """One episode on the page: the name of its film, and what happened."""

  name: str
  episode: closed_loop.Episode


def act(
  workdir: str, scenes: Sequence[int]
) -> list[tuple[record_lib.Embodiment, list[closed_loop.Episode]]]:
  """The record of each acting robot of a workdir, and its recorded episodes."""
  trained = checkpoint.load_for_inference(workdir)
  policy = agent_lib.TimedPolicy(trained.config, trained.params, trained.frozen)
  acted = []
  for name, robot in robot_lib.from_metadata(trained.metadata).items():
    if not (name.startswith(worlds.TABLETOP) and robot.can_act):
      continue
    episodes = closed_loop.run_episodes(
      closed_loop.in_turn(agent_lib.ModelAgent(policy, trained.config.model, robot)),
      robot,
      functools.partial(closed_loop.make_env, name, trained.config.evaluation),
      scenes,
      batch=len(scenes),
      recording=closed_loop.Recording(len(scenes), _SIZE),
    )
    acted.append((robot.record, episodes))
  return acted


def save_films(workdir: str, scenes: Sequence[int], place: pathlib.Path) -> list[Shown]:
  """Writes a film of every episode, and a strip of the very first one, to `place`."""
  run = pathlib.Path(workdir).name
  shown = []
  for record, episodes in act(workdir, scenes):
    for episode in episodes:
      stem = f'{run}_{record.name.removeprefix(worlds.TABLETOP)}_{episode.seed}'
      every = max(1, round(record.control_hz / _MOST_HZ))
      film.save_webp(place / f'{stem}.webp', episode, record, every=every)
      shown.append(Shown(stem, episode))
  first = shown[0].episode
  strip = place / f'{run}_strip.png'
  pictures.save_film_strip(strip, first.seen[1:], first.imagined, first.instruction, most=6)
  return shown


def draw_robots() -> np.ndarray:
  """Each embodiment in a scene of its own, while its expert is at work."""
  panels = []
  for name in tabletop.ROBOTS:
    env = tabletop.TabletopEnv(name, ('place',))
    env.reset(3)
    expert = tabletop.make_expert(env, 0)
    for _ in range(round(1.7 * env.control_hz)):
      env.step(expert())
    panel = env.render(_SIZE)
    drawing.label(panel, f'{name}, {env.control_hz:g} Hz')
    panels.append(panel)
  return np.concatenate(panels, axis=1)


def describe(workdir: str, shown: Sequence[Shown]) -> str:
  """The section of the page about one workdir."""
  run = pathlib.Path(workdir).name
  done = sum(s.episode.success for s in shown)
  lines = [f'## {run}', f'{done} of these {len(shown)} scenes are done in time.', '', '| | |']
  lines.append('|---|---|')
  cells = [_describe_episode(s) for s in shown]
  for start in range(0, len(cells), 2):
    pair = [*cells[start : start + 2], ''][:2]
    lines.append(f'| {pair[0]} | {pair[1]} |')
  strip = f'![Frames that happened above those imagined](pictures/gallery/{run}_strip.png)'
  return '\n'.join([*lines, '', strip, ''])


def _describe_episode(shown: Shown) -> str:
  episode = shown.episode
  outcome = 'done after' if episode.success else 'not done in'
  words = f'{episode.instruction}: {outcome} {episode.seconds:.1f} s'
  return f'![{words}](pictures/gallery/{shown.name}.webp) {words}'


def main(unused_argv: Sequence[str]) -> None:
  if not all(scene.isdigit() for scene in _SCENES.value) or not _SCENES.value:
    raise ValueError(f'--scenes={",".join(_SCENES.value)} must be numbers of scenes, as 0,1.')
  scenes = [int(scene) for scene in _SCENES.value]
  names = [pathlib.Path(workdir).name for workdir in _WORKDIRS.value]
  if len(set(names)) < len(names):
    raise ValueError(
      f'--workdirs={",".join(_WORKDIRS.value)} must have names of their own, which '
      'their films are called by.'
    )
  output = pathlib.Path(_OUTPUT.value).expanduser()
  place = output / 'pictures' / 'gallery'
  place.mkdir(parents=True, exist_ok=True)
  imageio.imwrite(place / 'robots.webp', draw_robots(), quality=80)
  page = [_HEAD]
  for workdir in _WORKDIRS.value:
    shown = save_films(workdir, scenes, place)
    page.append(describe(workdir, shown))
    print(f'{workdir}: {len(shown)} films')
  (output / 'gallery.md').write_text('\n'.join(page))
  print(f'wrote {output}/gallery.md and {place}')


if __name__ == '__main__':
  cli.run(main)
