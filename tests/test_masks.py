"""Masks and layouts against matrices written out; larger ones are compared with the reference in
test_wam_golden.
"""

from __future__ import annotations

import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax import flops
from wam_jax import masks
from wam_jax.models import attention

# Two chunks of one frame of one token, two actions and one state each; frame 0 is given.
# C0 C1 clean frames, N1 N2 noisy ones, a1 a2 actions and s1 s2 states of the chunks.
LITERAL = """
      C0 C1 N1 N2 a1 a1 a2 a2 s1 s2
  C0   1  0  0  0  0  0  0  0  0  0
  C1   1  1  0  0  0  0  0  0  0  0
  N1   1  0  1  0  1  1  0  0  1  0
  N2   1  1  0  1  0  0  1  1  0  1
  a1   1  0  1  0  1  1  0  0  1  0
  a1   1  0  1  0  1  1  0  0  1  0
  a2   1  1  0  1  0  0  1  1  0  1
  a2   1  1  0  1  0  0  1  1  0  1
  s1   {s1}
  s2   {s2}
"""
STATES = {
  'self': ('0  0  0  0  0  0  0  0  1  0', '0  0  0  0  0  0  0  0  0  1'),
  'chunk': ('1  0  1  0  1  1  0  0  1  0', '1  1  0  1  0  0  1  1  0  1'),
}


def layout_of(*, clean, noisy, cells, frames, actions, states, chunks):
  """A layout of `clean` frames and of the `noisy` ones, `frames` of `cells` tokens in a chunk."""
  return masks.training_layout(
    clean_frames=clean,
    noisy_frames=noisy,
    tokens_per_frame=cells,
    frames_per_chunk=frames,
    actions_per_chunk=actions,
    states_per_chunk=states,
    chunks=chunks,
  )


def matrix(text):
  """The 0/1 part of a table with row and column names."""
  return np.array(
    [[int(entry) for entry in line.split()[1:]] for line in text.strip().splitlines()[1:]], bool
  )


@pytest.mark.parametrize('rule', ['self', 'chunk'])
def test_an_action_of_an_overlap_is_of_the_chunk_that_it_goes_on_from(rule):
  """Of one action a chunk and one that overlaps, the second a1 is for the time of the first a2, and
  neither sees the other.
  """
  model = cfg.ModelConfig(actions_per_chunk=1, action_overlap=1, state_rule=rule, attention='dense')
  layout = flops.training_layout(model, tokens_per_frame=1)
  want = matrix(LITERAL.format(s1=STATES[rule][0], s2=STATES[rule][1]))
  np.testing.assert_array_equal(attention.training_mask(model, layout), want)
  # Each has a noise level of its own.
  np.testing.assert_array_equal(layout.group, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize('rule', ['self', 'chunk'])
def test_teacher_forcing(rule):
  layout = layout_of(clean=2, noisy=range(1, 3), cells=1, frames=1, actions=2, states=1, chunks=2)
  got = masks.teacher_forcing(layout, frames_per_chunk=1, window_frames=3, state_rule=rule)
  np.testing.assert_array_equal(got, matrix(LITERAL.format(s1=STATES[rule][0], s2=STATES[rule][1])))


@pytest.mark.parametrize('rule', ['self', 'chunk'])
def test_video_that_sees_video_alone(rule):
  """The rows of noisy video lose actions and states; nothing else changes."""
  layout = layout_of(clean=2, noisy=range(1, 3), cells=1, frames=1, actions=2, states=1, chunks=2)
  want = matrix(LITERAL.format(s1=STATES[rule][0], s2=STATES[rule][1]))
  want[[2, 3], 4:] = False
  given = dict(frames_per_chunk=1, window_frames=3, state_rule=rule, video_sees='video')
  np.testing.assert_array_equal(masks.teacher_forcing(layout, **given), want)

  # Of one copy of the video, too: N0 N1 a1 s1.
  layout = layout_of(clean=0, noisy=range(0, 2), cells=1, frames=1, actions=1, states=1, chunks=1)
  state = {'self': [0, 0, 0, 1], 'chunk': [1, 1, 1, 1]}[rule]
  want = np.bool_([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], state])
  np.testing.assert_array_equal(masks.without_clean(layout, **given), want)


def test_a_window_is_laid_out_token_by_token():
  layout = layout_of(clean=2, noisy=range(1, 3), cells=1, frames=1, actions=2, states=1, chunks=2)
  C, N, A, S = masks.CLEAN, masks.NOISY, masks.ACTION, masks.STATE
  np.testing.assert_array_equal(layout.kind, [C, C, N, N, A, A, A, A, S, S])
  np.testing.assert_array_equal(layout.block, [0, 1, 1, 2, 1, 1, 2, 2, 1, 2])
  np.testing.assert_array_equal(layout.frame, [0, 1, 1, 2, -1, -1, -1, -1, -1, -1])
  np.testing.assert_array_equal(layout.group, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8])


def test_frames_of_several_tokens_and_chunks_of_several_frames():
  """Frame 0, then two chunks of two frames of two tokens: a chunk's tokens see each other whatever
  their frame.
  """
  layout = layout_of(clean=3, noisy=range(1, 5), cells=2, frames=2, actions=1, states=1, chunks=2)
  got = masks.teacher_forcing(layout, frames_per_chunk=2, window_frames=5, state_rule='self')
  np.testing.assert_array_equal(
    got,
    matrix("""
        C0 C0 C1 C1 C2 C2 N1 N1 N2 N2 N3 N3 N4 N4 a1 a2 s1 s2
    C0   1  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
    C0   1  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
    C1   1  1  1  1  1  1  0  0  0  0  0  0  0  0  0  0  0  0
    C1   1  1  1  1  1  1  0  0  0  0  0  0  0  0  0  0  0  0
    C2   1  1  1  1  1  1  0  0  0  0  0  0  0  0  0  0  0  0
    C2   1  1  1  1  1  1  0  0  0  0  0  0  0  0  0  0  0  0
    N1   1  1  0  0  0  0  1  1  1  1  0  0  0  0  1  0  1  0
    N1   1  1  0  0  0  0  1  1  1  1  0  0  0  0  1  0  1  0
    N2   1  1  0  0  0  0  1  1  1  1  0  0  0  0  1  0  1  0
    N2   1  1  0  0  0  0  1  1  1  1  0  0  0  0  1  0  1  0
    N3   1  1  1  1  1  1  0  0  0  0  1  1  1  1  0  1  0  1
    N3   1  1  1  1  1  1  0  0  0  0  1  1  1  1  0  1  0  1
    N4   1  1  1  1  1  1  0  0  0  0  1  1  1  1  0  1  0  1
    N4   1  1  1  1  1  1  0  0  0  0  1  1  1  1  0  1  0  1
    a1   1  1  0  0  0  0  1  1  1  1  0  0  0  0  1  0  1  0
    a2   1  1  1  1  1  1  0  0  0  0  1  1  1  1  0  1  0  1
    s1   0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  1  0
    s2   0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  1
  """),
  )


def test_predicted_first_frame_stands_alone():
  layout = layout_of(clean=1, noisy=range(0, 2), cells=1, frames=1, actions=1, states=1, chunks=1)
  got = masks.teacher_forcing(layout, frames_per_chunk=1, window_frames=2, state_rule='self')
  np.testing.assert_array_equal(
    got,
    matrix("""
        C0 N0 N1 a1 s1
    C0   1  0  0  0  0
    N0   0  1  0  0  0
    N1   1  0  1  1  1
    a1   1  0  1  1  1
    s1   0  0  0  0  1
  """),
  )


def test_window_keeps_frame_0_and_the_newest():
  """The window holds two frames: clean frame 3 sees 0, 2 and 3."""
  layout = layout_of(clean=4, noisy=range(4, 4), cells=1, frames=1, actions=0, states=0, chunks=0)
  got = masks.teacher_forcing(layout, frames_per_chunk=1, window_frames=2, state_rule='self')
  np.testing.assert_array_equal(
    got, np.bool_([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]])
  )


def test_without_clean_video_a_chunk_sees_its_noisy_past():
  """Frame 0 and three chunks of a frame; the window holds two frames, so chunk 3 does not see chunk
  1.
  """
  layout = layout_of(clean=0, noisy=range(0, 4), cells=1, frames=1, actions=1, states=1, chunks=3)
  got = masks.without_clean(layout, frames_per_chunk=1, window_frames=2, state_rule='self')
  np.testing.assert_array_equal(
    got,
    matrix("""
        N0 N1 N2 N3 a1 a2 a3 s1 s2 s3
    N0   1  0  0  0  0  0  0  0  0  0
    N1   1  1  0  0  1  0  0  1  0  0
    N2   1  1  1  0  0  1  0  0  1  0
    N3   1  0  1  1  0  0  1  0  0  1
    a1   1  1  0  0  1  0  0  1  0  0
    a2   1  1  1  0  0  1  0  0  1  0
    a3   1  0  1  1  0  0  1  0  0  1
    s1   0  0  0  0  0  0  0  1  0  0
    s2   0  0  0  0  0  0  0  0  1  0
    s3   0  0  0  0  0  0  0  0  0  1
  """),
  )


def test_reference_without_window_is_causal_by_tokens():
  """Two tokens a frame, one chunk of one frame: the first token of C1 misses the second, in frame 0
  both see both.
  """
  layout = layout_of(clean=2, noisy=range(1, 2), cells=2, frames=1, actions=1, states=1, chunks=1)
  mask = masks.teacher_forcing(layout, frames_per_chunk=1, window_frames=2, state_rule='self')
  np.testing.assert_array_equal(
    masks.reference_global(layout, mask),
    matrix("""
        C0 C0 C1 C1 N1 N1 a1 s1
    C0   1  1  0  0  0  0  0  0
    C0   1  1  0  0  0  0  0  0
    C1   1  1  1  0  0  0  0  0
    C1   1  1  1  1  0  0  0  0
    N1   1  1  0  0  1  1  1  1
    N1   1  1  0  0  1  1  1  1
    a1   1  1  0  0  1  1  1  1
    s1   0  0  0  0  0  0  0  1
  """),
  )


def test_reference_without_window_and_actions_leaks():
  """Noisy frame 1 sees clean frame 1, its own target, and frame 0 is causal by tokens too."""
  layout = layout_of(clean=2, noisy=range(1, 2), cells=2, frames=1, actions=0, states=0, chunks=0)
  mask = masks.teacher_forcing(layout, frames_per_chunk=1, window_frames=2, state_rule='self')
  np.testing.assert_array_equal(
    masks.reference_global(layout, mask),
    matrix("""
        C0 C0 C1 C1 N1 N1
    C0   1  0  0  0  0  0
    C0   1  1  0  0  0  0
    C1   1  1  1  0  0  0
    C1   1  1  1  1  0  0
    N1   1  1  1  1  1  1
    N1   1  1  1  1  1  1
  """),
  )


# Layouts with chunks of two frames, and the frames of the window: odd sizes, a window that cuts a
# chunk in two, video alone.
LAYOUTS = {
  'two chunks': (
    layout_of(clean=3, noisy=range(1, 5), cells=2, frames=2, actions=1, states=1, chunks=2),
    5,
  ),
  'cut by the window': (
    layout_of(clean=7, noisy=range(0, 9), cells=5, frames=2, actions=3, states=1, chunks=4),
    5,
  ),
  'frames longer than a block': (
    layout_of(clean=3, noisy=range(0, 5), cells=150, frames=2, actions=24, states=1, chunks=2),
    5,
  ),
  'video alone': (
    layout_of(clean=3, noisy=range(1, 5), cells=7, frames=2, actions=0, states=0, chunks=0),
    5,
  ),
  'without clean video': (
    layout_of(clean=0, noisy=range(0, 5), cells=7, frames=2, actions=4, states=2, chunks=2),
    3,
  ),
}


def masks_of(name, rule, **rules):
  """(layout, its runs, mask of the tokens, mask of the runs)."""
  layout, window = LAYOUTS[name]
  make = masks.teacher_forcing if masks.CLEAN in layout.kind else masks.without_clean
  mask = lambda part: make(part, frames_per_chunk=2, window_frames=window, state_rule=rule, **rules)
  units = masks.units(layout)
  return layout, units, mask(layout), mask(units.layout)


@pytest.mark.parametrize('rule', ['self', 'chunk'])
@pytest.mark.parametrize('shards', [1, 2, 8])
@pytest.mark.parametrize('name', LAYOUTS)
def test_chunks_are_the_mask(name, shards, rule):
  """The plan written out as a matrix, in the order of the layout."""
  layout, units, want, visible = masks_of(name, rule)
  assert masks.area(units, visible) == want.sum()
  order, chunks = masks.chunk_plan(units, visible, shards)
  got = np.zeros((len(order), len(order)), bool)
  start = 0
  for part in chunks.parts:
    for keys in part.keys:
      got[start : start + part.size, slice(*keys)] = True
      assert part.conditional or (layout.kind[order[slice(*keys)]] < masks.ACTION).all()
    seen = np.concatenate([order[slice(*keys)] for keys in part.keys])
    assert (layout.kind[seen[: part.certain]] < masks.ACTION).all()
    start += part.size
  assert start == len(order)
  assert len(order) % shards == 0
  assert chunks.area == got.sum()
  same_order(order, got, want)


@pytest.mark.parametrize('shards', [1, 2, 8])
@pytest.mark.parametrize('name', LAYOUTS)
def test_blocks_are_the_mask(name, shards):
  """As above; blocks are all or nothing, so states see their chunk."""
  _, units, want, visible = masks_of(name, 'chunk')
  order, blocks = masks.block_plan(units, visible, shards)
  whole_block = np.ones((blocks.side, blocks.side))
  got = np.kron(np.array(blocks.visible), whole_block).astype(bool)
  assert got.shape == (len(order), len(order))
  assert len(order) % (blocks.side * shards) == 0
  assert blocks.area == got.sum()
  assert got.any(1).all()  # Nothing is divided by zero, not even in padding.
  same_order(order, got, want)


@pytest.mark.parametrize('shards', [1, 8])
@pytest.mark.parametrize('name', LAYOUTS)
def test_blocks_hide_actions_from_video_that_sees_video_alone(name, shards):
  """The blocks are those of video that sees all; in each, the first tokens are video."""
  layout, units, _, visible = masks_of(name, 'chunk')
  want = masks_of(name, 'chunk', video_sees='video')[2]
  order, blocks = masks.block_plan(units, visible, shards)
  video = masks.count_video(layout, order, blocks.side)
  is_video = np.concatenate([np.arange(blocks.side) < n for n in video])
  whole_block = np.ones((blocks.side, blocks.side))
  got = np.kron(np.array(blocks.visible), whole_block).astype(bool)
  same_order(order, got & (~is_video[:, None] | is_video), want)


def same_order(order, got, want):
  """`got` is `want` of the tokens in `order`, each of which is there once."""
  real = order >= 0
  np.testing.assert_array_equal(np.sort(order[real]), np.arange(len(want)))
  np.testing.assert_array_equal(got[np.ix_(real, real)], want[np.ix_(order[real], order[real])])


@pytest.mark.parametrize(
  'shards, most_imbalance', [(1, 1.0), (2, 1.0), (4, 1.0), (8, 1.0), (16, 1.001), (32, 1.03)]
)
def test_blocks_of_the_released_window(shards, most_imbalance):
  """14B: 14,180 tokens of which a third of all pairs see each other, 62,637,284 counted token by
  token.
  """
  layout = layout_of(
    clean=7, noisy=range(0, 9), cells=880, frames=2, actions=24, states=1, chunks=4
  )
  units = masks.units(layout)
  rule = lambda name: masks.teacher_forcing(
    units.layout, frames_per_chunk=2, window_frames=9, state_rule=name
  )
  # Frame 0 sees itself; both frames of a chunk see all up to the chunk's end.
  clean = 880**2 * (1 + 2 * (3 + 5 + 7))
  # A chunk: two frames and 24 actions, which see the past, themselves and the state.
  noisy = 880**2 + sum(1784 * (880 * past + 1785) for past in (1, 3, 5, 7))
  exact = masks.area(units, rule('self'))
  assert exact == clean + noisy + 4 == 62_637_284
  order, blocks = masks.block_plan(units, rule('chunk'), shards)
  work = np.sum(blocks.visible, 1).reshape(shards, -1).sum(1)
  assert work.max() <= most_imbalance * work.mean()
  # The target of benchmarks.pods.
  assert blocks.area <= 1.15 * exact
  assert len(order) <= 1.16 * len(layout.kind)
  if shards <= 8:
    assert (blocks.side, len(order), int(np.sum(blocks.visible))) == (896, 16 * 896, 80)
