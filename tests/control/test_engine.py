"""The engine of a server with real programs: sessions interleaved are as if alone, to the last bit,
whatever their robots and words; and the client of openpi, as it is, through all of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc

import flax.struct
import jax
import numpy as np
import pytest

from tests import weights
from tests.serving import engines
from wam_jax import config as cfg
from wam_jax.control import agent as agent_lib
from wam_jax.control import engine as engine_lib
from wam_jax.control import loaded
from wam_jax.control import turns
from wam_jax.data import embodiments
from wam_jax.envs import worlds
from wam_jax.evaluation import closed_loop
from wam_jax.models import encoders
from wam_jax.models import tokenizer

CART = embodiments.get('tabletop_cart')
A, U, X = 12, 4, 6
MODEL = dataclasses.replace(
  weights.SMALL,
  num_layers=1,
  action_dim=U,
  proprio_dim=X,
  num_embodiments=2,
  actions_per_chunk=A,
  max_chunks=2,
  tokenizer=cfg.TokenizerConfig(temporal=2, spatial=8, channels=6),
  text=cfg.TextConfig(vocab=16, dim=8, length=16),
)


DEAD = 255  # Of a first pixel: the device fails over such a frame.


@flax.struct.dataclass
class Fragile(tokenizer.PatchTokenizer):
  """A tokenizer in whose middle a device may fail, as it does: later than it is asked."""

  def _encode(self, frames_BRIJ3):
    def fail(frames_BRIJ3, latents_BFHWC):
      if (np.asarray(frames_BRIJ3)[0, 0, 0, 0] == DEAD).all():
        raise RuntimeError('uncorrectable error')
      return latents_BFHWC

    latents_BFHWC = super()._encode(frames_BRIJ3)
    like = jax.ShapeDtypeStruct(latents_BFHWC.shape, latents_BFHWC.dtype)
    return jax.pure_callback(fail, like, frames_BRIJ3, latents_BFHWC)


def make_engine(**options):
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, 5, 32, 48, 3)).astype(np.uint8)
  patches = tokenizer.fit_patch_tokenizer(frames, MODEL.tokenizer)
  if options.pop('is_fragile', False):
    patches = Fragile(**vars(patches))
  frozen = encoders.Encoders(tokenizer=patches, text=None, image=None, config=MODEL)
  params = weights.draw_params(MODEL, seed=2)
  config = cfg.TrainConfig(model=MODEL, sample=cfg.SampleConfig(steps=2))
  robots = {r.name: engines.make_robot(r, i) for i, r in enumerate((engines.DISC, CART))}
  robots['tabletop_human'] = engines.make_robot(embodiments.get('tabletop_human'), 2)
  made = engine_lib.Engine(config, params, frozen, robots, **options)
  made.warm()
  return made


@pytest.fixture(scope='module')
def engine():
  return make_engine(together=2)


def take_turns(engine, robot, words, seed, chunks=3):
  """The turns of an episode: of each, what came of it is sent in."""
  record = engine.robots[robot].record
  rng = np.random.default_rng(seed)
  state = engine.start(robot, words)
  for _ in range(chunks):
    # Not the value over which a device fails.
    frames = rng.integers(0, DEAD, (record.camera_frames_per_chunk, *record.composite, 3))
    acted = yield turns.Turn(
      state=state,
      robot=robot,
      frames=frames.astype(np.uint8),
      proprio_X=rng.normal(size=record.proprio_dim).astype(np.float32),
    )
    state = acted.state


def play(engine, robot, words, seed, chunks=3):
  """The chunks of an episode, one at a time: each time one is asked for, it is given."""
  episode = take_turns(engine, robot, words, seed, chunks)
  turn = next(episode)
  for number in range(chunks):
    acted = engine.act([turn])[0]
    yield acted.action_SU
    if number + 1 < chunks:
      turn = episode.send(acted)


def test_sessions_interleaved_are_as_if_alone(engine):
  """Through an anchor, a chunk that goes on, and the next anchor."""
  episodes = [('tabletop_disc', 'go', 0), ('tabletop_cart', 'go', 1), ('tabletop_disc', 'stop', 0)]
  alone = [list(play(engine, *episode)) for episode in episodes]
  together = list(zip(*zip(*[play(engine, *episode) for episode in episodes])))
  for got, want in zip(together, alone, strict=True):
    np.testing.assert_array_equal(got, want)
  # Robots do what they can, and words matter.
  assert [each[0].shape for each in alone] == [(8, 3), (4, 4), (8, 3)]
  assert np.abs(alone[0][0] - alone[2][0]).max() > 1e-3
  assert engine.traces == 1


def test_pictures_of_what_was_imagined_can_wait(engine):
  """Made when the episode is over, after other ones, they are those that the agent of an evaluation
  makes at each chunk.
  """
  robot = engine.robots['tabletop_disc']
  record = robot.record
  rng = np.random.default_rng(3)
  shape = (4, 1, record.camera_frames_per_chunk, *record.composite, 3)
  frames = rng.integers(0, 256, shape).astype(np.uint8)
  proprio_BX = rng.normal(size=(1, record.proprio_dim)).astype(np.float32)

  state, dreams = engine.start(record.name, 'go'), []
  for frames_BRIJ3 in frames:
    turn = turns.Turn(state, record.name, frames_BRIJ3[0], proprio_BX[0])
    acted = engine.act([turn])[0]
    state = acted.state
    dreams.append(engine.keep(record.name, acted))
  list(play(engine, 'tabletop_cart', 'go', 0))
  got = [engine.imagine(dream) for dream in dreams]

  policy = agent_lib.TimedPolicy(engine._config, engine._policy.params, engine._policy.frozen)
  agent = agent_lib.ModelAgent(policy, MODEL, robot)
  agent.reset(['go'], frames[0][:, 0], seed=0)
  want = [agent.act(frames_BRIJ3, proprio_BX)[1][0] for frames_BRIJ3 in frames]
  np.testing.assert_array_equal(got, want)
  assert np.asarray(got).std() > 1
  acted = turns.Acted(action_SU=acted.action_SU, state=acted.state)
  assert engine.keep(record.name, acted) is None


@pytest.mark.slow
def test_what_a_robot_is_committed_to_is_that_of_an_agent(engine):
  """A session of a server and an evaluation get the same chunks after the same commitments, which
  come back to the bit, from one program.
  """
  overlap = 3
  model = dataclasses.replace(MODEL, action_overlap=overlap)
  # As tiny_rtc is sampled: it looks back a chunk from any control step.
  sample = dataclasses.replace(engine._config.sample, history='window')
  config = dataclasses.replace(engine._config, model=model, sample=sample)
  weights_ = (engine._policy.params, engine._policy.frozen)
  robot = dataclasses.replace(engine.robots['tabletop_disc'], action_overlap=overlap)
  record = robot.record
  served = engine_lib.Engine(config, *weights_, {record.name: robot}, together=2)
  served.warm()
  policy = agent_lib.TimedPolicy(config, *weights_)
  agent = agent_lib.ModelAgent(policy, model, robot)

  rng = np.random.default_rng(5)
  state = served.start(record.name, 'go')
  assert served.frames_per_call == record.camera_frames_per_chunk + 1
  frames = rng.integers(0, 256, (served.frames_per_call, *record.composite, 3), np.uint8)
  agent.reset(['go'], frames[None, 0], seed=0)
  prefix_DU = np.zeros((0, 3), np.float32)
  for length in (2, 3, 0):
    proprio_X = rng.normal(size=record.proprio_dim).astype(np.float32)
    acted = served.act([turns.Turn(state, record.name, frames, proprio_X, prefix_DU)])[0]
    state = acted.state
    (want_SU,), _ = agent.act_on(frames[None], proprio_X[None], [prefix_DU])
    np.testing.assert_array_equal(acted.action_SU, want_SU)
    assert acted.action_SU.shape == (8 + overlap, 3)
    np.testing.assert_array_equal(acted.action_SU[: len(prefix_DU)], prefix_DU)
    # What is executed while the next one is computed.
    prefix_DU = acted.action_SU[8 : 8 + length]
  assert served.traces == policy.traces == 1


def play_together(engine, episodes, absent=lambda number, episode: False):
  """The chunks of each episode; at every call those that are not absent ask at once."""
  going = [take_turns(engine, *episode) for episode in episodes]
  waiting = dict(enumerate(map(next, going)))
  chunks = [[] for _ in episodes]
  number = 0
  while waiting:
    asked = [one for one in waiting if not absent(number, one)]
    for one, acted in zip(asked, engine.act([waiting.pop(one) for one in asked]), strict=True):
      chunks[one].append(acted.action_SU)
      with contextlib.suppress(StopIteration):
        waiting[one] = going[one].send(acted)
    number += 1
  return chunks


EPISODES = [
  ('tabletop_disc', 'go', 0),
  ('tabletop_cart', 'go', 1),
  ('tabletop_disc', 'stop', 2, 4),
]


def test_sessions_that_are_ready_together_get_what_they_get_alone(engine):
  """Robots, words, places and ends of their own; three of them in passes of two and of one, and
  nothing is traced or kept that was not there before.
  """
  alone = [list(play(engine, *episode)) for episode in EPISODES]
  held = engine.device_bytes()
  late = lambda number, one: number == 1 and one == 0
  for absent in (late, lambda number, one: False):
    together = play_together(engine, EPISODES, absent)
    for got, want in zip(together, alone, strict=True):
      np.testing.assert_allclose(got, want, atol=1e-5)  # Sums in another order.
  assert engine.rows == 2
  assert engine.traces == 1
  assert engine.device_bytes() == held


@pytest.mark.slow
def test_with_passes_of_one_size_who_else_is_there_changes_no_bit():
  """Eight sessions alone, at once, and coming at random."""
  engine = make_engine(together=8, deterministic=True)
  robots = ('tabletop_disc', 'tabletop_cart')
  episodes = [(robots[i % 2], f'go {i % 3}', i) for i in range(8)]
  alone = [list(play(engine, *episode)) for episode in episodes]
  rng = np.random.default_rng(0)
  for absent in (lambda number, one: False, lambda number, one: rng.random() < 0.5):
    for got, want in zip(play_together(engine, episodes, absent), alone, strict=True):
      np.testing.assert_array_equal(got, want)
  assert engine.traces == 1
  # As many spare sessions as before.
  assert len(engine._spares) == 7


@pytest.mark.slow
@pytest.mark.parametrize('deterministic', [False, True])
def test_a_pass_that_fails_on_the_device_ends_its_sessions_alone(deterministic):
  engine = make_engine(together=2, is_fragile=True, deterministic=deterministic)
  going = [take_turns(engine, *episode) for episode in EPISODES]
  want = [list(play(engine, *episode)) for episode in EPISODES]
  given = [next(episode) for episode in going]
  dead = np.full_like(given[2].frames, DEAD)
  first, second, third = engine.act([*given[:2], dataclasses.replace(given[2], frames=dead)])
  np.testing.assert_allclose([first.action_SU], want[0][:1], atol=1e-5)
  np.testing.assert_allclose([second.action_SU], want[1][:1], atol=1e-5)
  assert 'uncorrectable error' in third.why
  # The others go on, and the one that failed begins anew.
  again = play_together(engine, EPISODES)
  for got, each in zip(again, want, strict=True):
    np.testing.assert_allclose(got, each, atol=1e-5)
  acted = engine.act([going[0].send(first), going[1].send(second)])
  np.testing.assert_allclose(acted[0].action_SU, want[0][1], atol=1e-5)


@pytest.mark.slow
def test_an_episode_that_fails_on_the_device_is_over_and_says_so():
  engine = make_engine(together=1, is_fragile=True)
  policy = agent_lib.TimedPolicy(engine._config, engine._policy.params, engine._policy.frozen)
  robot = engine.robots['tabletop_disc']
  agent = agent_lib.ModelAgent(policy, MODEL, robot)
  turn = next(take_turns(engine, *EPISODES[0]))
  frames, proprio_BX = turn.frames[None], turn.proprio_X[None]
  agent.reset(['go'], frames[:, 0], seed=0)
  with pytest.raises(loaded.StepFailed, match='next one begins with a reset. INTERNAL') as failed:
    agent.act(np.full_like(frames, DEAD), proprio_BX)
  assert 'uncorrectable error' in str(failed.value.__cause__)
  with pytest.raises(ValueError, match='No episode is under way: the last step failed'):
    agent.act(frames, proprio_BX)
  agent.reset(['go'], frames[:, 0], seed=0)
  want = next(play(engine, *EPISODES[0]))
  np.testing.assert_array_equal(agent.act(frames, proprio_BX)[0][0], want)


def test_what_a_session_takes(engine):
  """Counted from what is on the device, so that a session more takes so much more."""
  before = engine.device_bytes()
  state = engine.start('tabletop_disc', 'go')
  grown = engine.device_bytes() - before
  # What the host gave, as the mask of actions, is counted with the session as well.
  assert grown == pytest.approx(engine.session_bytes, rel=0.05)
  assert engine.count_sessions() > 100
  del state


def test_what_waits_to_be_seen_holds_nothing_of_the_device(engine):
  episode = take_turns(engine, 'tabletop_disc', 'go', seed=0, chunks=1)
  before = engine.device_bytes()
  acted = engine.act([next(episode)])[0]
  dream = engine.keep('tabletop_disc', acted)
  assert dream.nbytes > 0
  del acted, episode
  gc.collect()
  assert engine.device_bytes() <= before


def test_an_instruction_that_would_be_cut_begins_no_episode(engine):
  most = ' '.join(['go'] * MODEL.text.length)
  assert engine.start('tabletop_disc', most) is not None
  with pytest.raises(ValueError, match=r'of 17 tokens, of which config.model.text.length=16 are'):
    engine.start('tabletop_disc', f'{most} on')


def test_who_cannot_act_is_not_served(engine):
  assert set(engine.robots) == {'tabletop_disc', 'tabletop_cart'}
  human = {'tabletop_human': engines.make_robot(embodiments.get('tabletop_human'))}
  with pytest.raises(ValueError, match=r"robots of this checkpoint, \['tabletop_human'\], has"):
    engine_lib.Engine(cfg.TrainConfig(model=MODEL), None, None, human)


def test_openpi_clients_second_episode_equals_the_first(engine):
  pytest.importorskip('websockets', reason="pip install -e '.[serve]'")
  openpi = pytest.importorskip(
    'openpi_client.websocket_client_policy', reason='pip install --no-deps openpi-client'
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 2, 48, 64, 3)).astype(np.uint8)

  def play_episode(port):
    client = openpi.WebsocketClientPolicy('127.0.0.1', port)
    chunks = []
    for top, wrist in images:
      proprio = np.float32([0.1, 0.2, 0, 0])
      views = {'observation/top': top, 'observation/wrist': wrist}
      chunks.append(client.infer({**views, 'observation/proprio': proprio, 'prompt': 'go'}))
    client._ws.close()
    return np.stack([chunk['actions'] for chunk in chunks])

  with engines.serving(engine) as server:
    first, second = play_episode(server.port), play_episode(server.port)
  assert first.shape == (3, 8, 3)
  np.testing.assert_array_equal(second, first)


def test_over_the_wire_the_tabletop_gets_the_actions_of_the_evaluation(engine):
  """Bit for bit, through whole episodes: frames, states, words and noise are the same."""
  pytest.importorskip('websockets', reason="pip install -e '.[serve]'")
  from launch.robots import tabletop
  from wam_jax.client import broker as broker_lib
  from wam_jax.client import policy as policy_lib

  robot = engine.robots['tabletop_disc']
  policy = agent_lib.TimedPolicy(engine._config, engine._policy.params, engine._policy.frozen)
  agent = agent_lib.ModelAgent(policy, MODEL, robot)
  make_env = functools.partial(worlds.make, 'tabletop_disc', ('reach',))
  recording = closed_loop.Recording(episodes=2, scene_size=8)
  episodes = closed_loop.run_episodes(
    closed_loop.in_turn(agent), robot, make_env, [3, 4], 1, recording=recording
  )

  class Watched(broker_lib.ChunkBroker):
    def act(self, observation):
      action = super().act(observation)
      asked.append(action)
      return action

  def play_over_the_wire(port, episode):
    with policy_lib.RemotePolicy(f'ws://127.0.0.1:{port}') as remote:
      assert tabletop.run_episode(make_env(), Watched(remote), episode.seed) == episode.success

  with engines.serving(engine) as server:
    for episode in episodes:
      asked: list[np.ndarray] = []
      play_over_the_wire(server.port, episode)
      assert len(asked) > 20 or episode.success
      np.testing.assert_array_equal(asked, np.float32(episode.asked[: len(asked)]))
