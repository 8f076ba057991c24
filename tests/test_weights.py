"""The weights that ship: small, whole, described, and their robots still act."""

from __future__ import annotations

import functools
import pathlib
import re

import pytest

from wam_jax import checkpoint
from wam_jax import frozen
from wam_jax import identity
from wam_jax import source
from wam_jax import storage
from wam_jax.control import agent as agent_lib
from wam_jax.data import robot as robot_lib
from wam_jax.evaluation import closed_loop

ROOT = pathlib.Path(__file__).parent.parent
CARD = (ROOT / 'weights/README.md').read_text()
PLACES = {path.name: path for path in sorted((ROOT / 'weights').iterdir()) if path.is_dir()}


@pytest.mark.parametrize('name', PLACES)
def test_they_are_small_whole_and_on_the_card(name):
  place = PLACES[name]
  kept = {path: size for path, size in storage.list_files(place).items() if is_kept(path)}
  assert sum(kept.values()) < 3e6
  metadata = checkpoint.load_metadata(place / 'checkpoints/0')
  # As the run had them: the card, the record of the run and the checkpoint name the same weights.
  assert f'`{metadata["weights"]}`' in CARD
  assert metadata['source']['dtype'] == 'keep'
  assert metadata['source']['workdir'] == f'~/wam/{name}'
  for path in kept:
    content = (place / path).read_bytes()
    assert not any(home in content for home in (b'/root/', b'/home/', b'/tmp/'))


@pytest.mark.parametrize('name', PLACES)
def test_their_numbers_are_those_that_were_trained(name):
  """What an evaluation reads has the hash on the card, and so have the encoders theirs."""
  place = PLACES[name]
  (hashed,) = re.findall(rf'^\| `weights/{name}` \|.* `(\w{{32}})` \|$', CARD, re.MULTILINE)
  assert identity.hash_arrays(checkpoint.load_for_inference(place).params) == hashed
  metadata = checkpoint.load_metadata(place / 'checkpoints/0')
  stored = frozen.find(place / 'checkpoints/0', metadata)
  assert frozen.hash_stored(stored) == metadata['encoders']
  assert frozen.find_place(place, metadata['encoders']) == stored


def is_kept(path: str) -> bool:
  return path.split('/')[0] not in ('evaluation', 'compilation_cache')


def test_they_were_trained_from_the_first_one():
  tiny = source.open_source(PLACES['tiny']).metadata['weights']
  flash, tasks = (
    checkpoint.load_metadata(PLACES[name] / 'checkpoints/0')['source']['base']
    for name in ('tiny_flash', 'tiny_tasks')
  )
  assert flash['weights'] == tiny
  # The three robots took two runs; the weights of the first are on the card.
  assert f'`{tasks["weights"]}`' in CARD
  assert tasks['origin']['base']['weights'] == tiny


# Successes of 10 scenes of each robot at least; the card has what they were when they were made.
LEAST = {'tiny': 9, 'tiny_flash': 9, 'tiny_tasks': 20}


@pytest.mark.slow
@pytest.mark.parametrize('name', PLACES)
def test_their_robots_act(name):
  trained = checkpoint.load_for_inference(PLACES[name])
  policy = agent_lib.TimedPolicy(trained.config, trained.params, trained.frozen)
  successes = 0
  for robot_name, robot in robot_lib.from_metadata(trained.metadata).items():
    if robot.can_act:
      episodes = closed_loop.run_episodes(
        closed_loop.in_turn(agent_lib.ModelAgent(policy, trained.config.model, robot)),
        robot,
        functools.partial(closed_loop.make_env, robot_name, trained.config.evaluation),
        seeds=range(10),
        batch=10,
      )
      successes += sum(episode.success for episode in episodes)
  assert successes >= LEAST[name]
