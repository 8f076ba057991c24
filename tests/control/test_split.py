"""One policy on several devices against the same on one: what it does, where its arrays lie, and
that nothing is compiled or copied once it is under way. The devices are simulated.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import trees
from tests import weights as draw
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import loaded
from wam_jax.control import policy as policy_lib
from wam_jax.control import split as split_lib
from wam_jax.control import startup
from wam_jax.control import together
from wam_jax.control import weights
from wam_jax.models import encoders
from wam_jax.models import tokenizer

r = 2
MODEL = dataclasses.replace(
  draw.SMALL,
  dim=32,
  num_heads=4,
  action_dim=3,
  proprio_dim=4,
  num_embodiments=2,
  actions_per_chunk=4,
  max_chunks=3,
  video_sees='video',
  tokenizer=cfg.TokenizerConfig(temporal=r, spatial=8, channels=6),
  text=cfg.TextConfig(vocab=16, dim=8, length=4),
)
FLOW = cfg.FlowConfig(video_hidden=0.2, video_at_noise=0.2)
JOINT = cfg.SampleConfig(steps=2)
GUIDED = cfg.SampleConfig(steps=2, guidance_scale=3.0)
# One pass of the video, of both branches, and actions alone after it, of one.
KEPT = cfg.SampleConfig(mode='flash', steps=1, action_steps=3, guidance_scale=3.0)
ALONE = cfg.SampleConfig(mode='act_only', steps=2)
SLIDING = cfg.SampleConfig(steps=2, history='sliding')
CALLS = 7
FRAMES = np.random.default_rng(0).integers(0, 256, (2, CALLS * r, 16, 32, 3)).astype(np.uint8)
PROPRIO = np.random.default_rng(1).normal(size=(2, CALLS, 4)).astype(np.float32)


@functools.cache
def frozen():
  patches = tokenizer.fit_patch_tokenizer(FRAMES[:, :5], MODEL.tokenizer)
  return encoders.Encoders(tokenizer=patches, text=None, image=None, config=MODEL)


@functools.cache
def host_params():
  return draw.draw_params(MODEL, seed=1)


class Robots:
  """The policy for some robots, and the weights that it is given."""

  def __init__(self, sample, mesh, robots=1, model=MODEL):
    self.robots = robots
    sample = dataclasses.replace(sample, mesh=mesh)
    split = split_lib.make(cfg.TrainConfig(model=model, flow=FLOW, sample=sample))
    self.params, self.frozen = weights.place(host_params(), frozen(), model, sample, split)
    self.policy = policy_lib.Policy(model, sample, FLOW, split=split)

  def start(self, key=0):
    c, B = MODEL, self.robots
    ids_BP = np.arange(1, 1 + B, dtype=np.int32)[:, None].repeat(c.text.length, 1)
    mask_BAU = np.ones((B, c.actions_per_chunk, c.action_dim), bool)
    mask_BAU[0, :, 2:] = False
    task = types.Task(
      prompt_ids_BP=ids_BP,
      embodiment_B=np.arange(B, dtype=np.int32),
      action_mask_BAU=mask_BAU,
      negative_ids_BP=np.zeros_like(ids_BP) if self.policy.sample.is_guided else None,
    )
    return self.policy.reset(self.params, self.frozen, task, FRAMES[:B, 0], jax.random.key(key))

  def act(self, state, call):
    """((actions, imagined latents or nothing), state)."""
    B = self.robots
    frames = FRAMES[:B, call * r : (call + 1) * r]
    observation = types.Observation(frames_BRIJ3=frames, proprio_BX=PROPRIO[:B, call])
    action, latents, state = self.policy.step(self.params, self.frozen, state, observation)
    return [np.asarray(x) for x in (action, latents) if x is not None], state

  def live(self, calls=CALLS, key=0):
    """What an episode gives."""
    state = self.start(key)
    outputs = []
    for call in range(calls):
      output, state = self.act(state, call)
      outputs += output
    return outputs


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  ('sample', 'mesh', 'robots'),
  [
    pytest.param(KEPT, ('tensor=2', 'data=2'), 1, id='heads and a branch a device'),
    pytest.param(SLIDING, ('tensor=4',), 1, id='heads'),
    pytest.param(GUIDED, ('data=2',), 1, id='a branch a device', marks=SLOW),
    pytest.param(JOINT, ('tensor=4',), 1, id='joint', marks=SLOW),
    pytest.param(ALONE, ('tensor=2',), 1, id='alone', marks=SLOW),
    pytest.param(JOINT, ('data=2',), 2, id='robots', marks=SLOW),
  ],
)
def test_several_devices_give_what_one_gives(sample, mesh, robots):
  """Over chunks in which the history starts anew or slides, and over a reset; nothing is compiled
  after the first two chunks of an episode.
  """
  several = Robots(sample, mesh, robots)
  watch = startup.Watch()
  several.live(calls=2, key=5)
  made = watch.made
  got = several.live()
  assert several.policy.traces == 1
  assert watch.made == made
  trees.assert_close(got, Robots(sample, (), robots).live())
  assert_in_place(several)


def places(tree):
  """Where each device has its part."""
  return [
    [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]
    for x in jax.tree.leaves(tree)
  ]


def assert_in_place(robots):
  """Each device has its heads and its rows of the cache, and writes them where they lie."""
  sizes = cfg.read_mesh(robots.policy.sample.mesh)
  state = robots.start()
  cache = state.memory.cache
  L, G, N, S, K = cache.k.shape
  part = (L, G // sizes.get('data', 1), N // sizes.get('tensor', 1), S, K)
  before = places((cache.k, cache.v, state.memory.clean_BFHWC))
  for call in range(MODEL.max_chunks + 1):
    for x in (cache.k, cache.v):
      assert {shard.data.shape for shard in x.addressable_shards} == {part}
    _, state = robots.act(state, call)
    cache = state.memory.cache
    assert places((cache.k, cache.v, state.memory.clean_BFHWC)) == before


def test_a_device_holds_its_share_of_the_layers():
  share, whole = (Robots(JOINT, mesh).params['blocks']['ffn'] for mesh in (('tensor=4',), ()))
  # Biases of the width of the model stay whole.
  assert weights.count_bytes(share) < 0.27 * weights.count_bytes(whole)


@SLOW
@pytest.mark.parametrize('precision', ['int8', 'w8a8'])
def test_quantized_weights_are_split_too(precision):
  pytest.importorskip('qwix', reason="pip install -e '.[quant]'")
  sample = dataclasses.replace(JOINT, precision=precision)
  model = cfg.choose_dtype(MODEL, sample)
  got, want = (Robots(sample, mesh, model=model).live(calls=2) for mesh in (('tensor=2',), ()))
  for g, w in zip(got, want):
    # bfloat16 sums in another order.
    np.testing.assert_allclose(g, w, atol=0.05)


@SLOW
def test_sessions_in_a_pass_are_split_too():
  def run(mesh):
    robots = Robots(GUIDED, mesh)
    pair = together.Together(robots.policy, (2,))
    states = [robots.start(key) for key in range(2)]
    outputs = []
    for call in range(3):
      states = [
        robots.policy.look(
          robots.params,
          robots.frozen,
          state,
          FRAMES[number : number + 1, call * r : (call + 1) * r],
        )
        for number, state in enumerate(states)
      ]
      before = places([state.memory.cache.k for state in states])
      action, latents, states = pair.act(robots.params, states, PROPRIO[:, call])
      assert places([state.memory.cache.k for state in states]) == before
      outputs += [np.asarray(action), np.asarray(latents)]
    assert robots.policy.traces == 1
    return outputs

  trees.assert_close(run(('tensor=2', 'data=2')), run(()))


def config(sample, model=MODEL):
  return cfg.TrainConfig(model=model, flow=FLOW, sample=sample)


@pytest.mark.parametrize(
  ('mesh', 'message'),
  [
    (('tensor=3',), 'model.num_heads=4 must be divisible by 3.*nearest valid: 2'),
    (('tensor=16',), 'needs 16 devices; there are 8'),
    (('seq=2',), "'seq=2' must be NAME=N.*tensor, data"),
    (('tensor=two',), "'tensor=two' must be NAME=N"),
    (('tensor=2', 'tensor=2'), 'once at most'),
  ],
)
def test_what_does_not_divide_is_refused_before_the_weights_are_placed(mesh, message):
  with pytest.raises(ValueError, match=message):
    loaded.LoadedPolicy(config(dataclasses.replace(JOINT, mesh=mesh)), None, None)


def test_one_robot_without_guidance_has_no_rows_to_split():
  with pytest.raises(ValueError, match='1 robots times 1 branches of guidance = 1'):
    Robots(JOINT, ('data=2',)).start()
