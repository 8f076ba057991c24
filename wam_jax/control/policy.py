"""Closed-loop control: what the host decides of an episode, and refuses.

The host counts frames and so knows which of the `programs` is next. `step` is all of it for a chunk
that was observed at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from wam_jax import types
from wam_jax.control import checks
from wam_jax.control import memory as memory_lib
from wam_jax.control import programs
from wam_jax.models import encoders

Memory = memory_lib.Memory
PolicyState = memory_lib.PolicyState
Asked = memory_lib.Asked


class Policy(programs.Programs):
  """`reset`, `step` and its parts, and `imagine`, for one model, batch size and way of sampling; a
  state is that of its episode, and each call gives the next.
  """

  @property
  def frames_per_call(self) -> int:
    """Camera frames that `step` takes."""
    return self.cfg.camera_frames_per_chunk + (self.sample.history == 'window')

  @property
  def full(self) -> int:
    """Latent frames of which an anchor is next: the last chunk is never looked back on."""
    return 1 + (self.cfg.max_chunks - 1) * self.cfg.frames_per_chunk

  def reset(
    self,
    params: Any,
    frozen: encoders.Encoders,
    task: types.Task,
    frame_BIJ3: types.Array,
    key: jax.Array,
  ) -> PolicyState:
    """State at the start of an episode.

    Args:
      task: with negative prompts where `sample.is_guided`.
      frame_BIJ3: any frame of the shape and type of observed ones; its pixels are not used.
    Raises:
      ValueError: the devices do not divide the robots and the branches of guidance.
    """
    if self.split is not None:
      self.split.check_rows(len(frame_BIJ3), self.branches)
    memory, eyes = self.programs['reset'](params, frozen, task, frame_BIJ3, key)
    frame = checks.Frame(tuple(frame_BIJ3.shape), np.dtype(frame_BIJ3.dtype))
    return PolicyState(memory=memory, eyes=eyes, frame=frame)

  def anchors_next(self, state: PolicyState) -> bool:
    """Whether the next chunk begins with `anchor`, and not with what `observe` has seen."""
    if self.sample.history == 'window':
      return not state.begins
    if self.slides:
      return state.frames == 0
    # The limit of the reference's global rule is -1 frames, which every call has reached.
    endless = self.cfg.history_rule == 'reference_global'
    return endless or state.frames in (0, self.full)

  def step(
    self,
    params: Any,
    frozen: encoders.Encoders,
    state: PolicyState,
    observation: types.Observation,
    noise: tuple[types.Array, types.Array] | None = None,
    prefix: types.Prefix | None = None,
  ) -> tuple[jax.Array, jax.Array | None, PolicyState]:
    """What `act` gives, after all frames since the last chunk; with `sample.history` 'window' after
    the frame of a chunk ago and those since, whenever the last call was.

    Raises:
      ValueError: what is wrong with the observation; the state is as it was.
    """
    frames_BRIJ3 = observation.frames_BRIJ3
    count = self.frames_per_call
    checks.refuse(
      [
        *checks.list_frame_problems(frames_BRIJ3, state.frame, count),
        *self._list_problems(state.frame.shape[0], Asked(observation.proprio_BX, noise, prefix)),
      ]
    )
    state = self.look(params, frozen, state, frames_BRIJ3)
    return self.act(params, state, observation.proprio_BX, noise, prefix)

  def look(
    self, params: Any, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3: types.Array
  ) -> PolicyState:
    """All frames since the last chunk were seen; `act` is next.

    Raises:
      ValueError: what is wrong with the frames; the state is as it was.
    """
    checks.refuse(checks.list_frame_problems(frames_BRIJ3, state.frame, self.frames_per_call))
    if self.sample.history == 'window' and state.frames:
      state = self.anchor(params, frozen, state, frames_BRIJ3[:, :1])
      return self._observe_all(frozen, state, frames_BRIJ3[:, 1:])
    if self.anchors_next(state):
      return self.anchor(params, frozen, state, self._choose_anchor(frames_BRIJ3))
    return self._observe_all(frozen, state, frames_BRIJ3)

  def _observe_all(
    self, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3: types.Array
  ) -> PolicyState:
    per_latent = self.cfg.tokenizer.temporal
    for start in range(0, frames_BRIJ3.shape[1], per_latent):
      state = self.observe(frozen, state, frames_BRIJ3[:, start : start + per_latent])
    return state

  def observe(
    self, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3: types.Array
  ) -> PolicyState:
    """The frames of the next latent frame, `tokenizer.temporal` of them, were seen.

    Training encodes a window as one stream. The reference encodes each observed chunk as a video of
    its own, which begins with the chunk's first frame once more: `sample.observed` 'fresh'.

    Raises:
      ValueError: the chunk is whole already, the next one begins with an anchor, or what is wrong
        with the frames; the state is as it was.
    """
    temporal = self.cfg.tokenizer.temporal
    state.check_there()
    checks.refuse(checks.list_frame_problems(frames_BRIJ3, state.frame, temporal))
    if self.anchors_next(state):
      raise ValueError(
        f'With {state.frames} frames in the cache an anchor is next, not an observation.'
      )
    if state.waiting == self.cfg.frames_per_chunk:
      raise ValueError(f'All {state.waiting} latent frames of the chunk are observed; act is next.')
    self._check_paid(state)
    return self.see(frozen, state, frames_BRIJ3)

  def see(
    self, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3: types.Array
  ) -> PolicyState:
    """`observe`, whatever is next."""
    eyes = state.eyes
    if self.sample.observed == 'fresh' and state.waiting == 0:
      eyes = self.programs['restart'](frozen, eyes, frames_BRIJ3[:, :1])
    eyes = self.programs['observe'](frozen, eyes, frames_BRIJ3, np.int32(state.waiting))
    return dataclasses.replace(state, eyes=eyes, waiting=state.waiting + 1)

  def anchor(
    self, params: Any, frozen: encoders.Encoders, state: PolicyState, frame_B1IJ3: types.Array
  ) -> PolicyState:
    """This frame is frame 0, and everything before it forgotten."""
    checks.refuse(checks.list_frame_problems(frame_B1IJ3, state.frame, 1))
    self._check_paid(state)
    memory, eyes = self.programs['anchor'](params, frozen, state.memory, state.eyes, frame_B1IJ3)
    return PolicyState(memory=memory, eyes=eyes, frame=state.frame, frames=1, begins=True)

  def act(
    self,
    params: Any,
    state: PolicyState,
    proprio_BX: types.Array,
    noise: tuple[types.Array, types.Array] | None = None,
    prefix: types.Prefix | None = None,
    foreseen_BFHWC: types.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None, PolicyState]:
    """(actions [B, A, U] normalized, predicted latents [B, F, H, W, C] of the chunk, state); no
    latents where the actions act alone. Of a model with an overlap the last `action_overlap` of the
    actions are the first of the chunk after this one, as far as is known now.

    Args:
      proprio_BX: normalized, now.
      noise: (video, action) like the predicted latents and actions; None draws it from the state's
        key.
      prefix: first actions of the chunk that the robots are committed to, which come back as they
        are and which the others go on from; None for none.
      foreseen_BFHWC: latents of the chunk under way, of which not all is observed yet; what really
        comes is then owed (`control.lookahead`).
    Raises:
      ValueError: the chunk that was executed is not observed yet; the prefix is longer than the
        model's overlap.
    """
    state.check_there()
    asked = self.ask(state.frame.shape[0], Asked(proprio_BX, noise, prefix))
    per_chunk = self.cfg.frames_per_chunk
    if state.is_at_anchor and foreseen_BFHWC is None:
      *output, memory = self.programs['begin'](params, state.memory, asked)
      return *output, self.count_chunk(state, memory)
    self._check_paid(state)
    if foreseen_BFHWC is None and state.waiting < per_chunk:
      raise ValueError(
        f'{state.waiting} of {per_chunk} latent frames of the last chunk are observed.'
      )
    seen_BFHWC = state.eyes.latents_BFHWC if foreseen_BFHWC is None else foreseen_BFHWC
    *output, memory = self.programs['act'](
      params, state.memory, seen_BFHWC, np.int32(state.frames), asked
    )
    if foreseen_BFHWC is None:
      return *output, self.count_chunk(state, memory)
    after = self.count_chunk(dataclasses.replace(state, waiting=per_chunk), memory)
    if self.sample.history != 'window':
      # What was observed of the chunk stays, and the rest of it is to come.
      after = dataclasses.replace(after, waiting=state.waiting, owed=True)
    return *output, after

  def _check_paid(self, state: PolicyState) -> None:
    if state.owed:
      raise ValueError(
        'The last chunk was committed as it was foreseen; first amend it by the frames that came.'
      )

  def count_chunk(self, state: PolicyState, memory: Memory) -> PolicyState:
    """The state after a chunk, of which this is remembered."""
    frames = state.frames + state.waiting
    return dataclasses.replace(state, memory=memory, frames=frames, waiting=0, begins=False)

  def ask(self, batch: int, asked: Asked) -> Asked:
    """`asked` as programs take it.

    Raises:
      ValueError: what is wrong with it for so many robots.
    """
    checks.refuse(self._list_problems(batch, asked))
    return asked._replace(prefix=self._fill(asked.prefix, batch))

  def _list_problems(self, batch: int, asked: Asked) -> list[str]:
    c = self.cfg
    return [
      *checks.list_proprio_problems(asked.proprio_BX, batch, c.proprio_dim),
      *checks.list_prefix_problems(asked.prefix, batch, c.action_overlap, c.action_dim),
    ]

  def _fill(self, prefix: types.Prefix | None, batch: int) -> types.Prefix | None:
    """A prefix for every call of a model that takes one, so that none is compiled again; of no step
    where there is none.
    """
    c = self.cfg
    if not c.action_overlap:
      return None
    if prefix is None:
      nothing_BDU = np.zeros((batch, c.action_overlap, c.action_dim), np.float32)
      return types.Prefix(action_BDU=nothing_BDU, length_B=np.zeros(batch, np.int32))
    return types.Prefix(
      action_BDU=np.asarray(prefix.action_BDU, np.float32),
      length_B=np.asarray(prefix.length_B, np.int32),
    )

  def imagine(
    self, frozen: encoders.Encoders, state: PolicyState, latents_BFHWC: types.Array
  ) -> jax.Array:
    """Predicted latents as frames [B, r, I, J, 3] in [-1, 1], decoded after the observed ones of
    `step`'s state.
    """
    return self.decode(frozen, state.memory.clean_BFHWC, latents_BFHWC, state.frames)

  def decode(
    self,
    frozen: encoders.Encoders,
    clean_BFHWC: types.Array,
    latents_BFHWC: types.Array,
    frames: int,
  ) -> jax.Array:
    """`imagine`, of a state that may be gone: its `memory.clean_BFHWC` and its `frames`."""
    start = np.int32(frames - self._shift(frames + self.cfg.frames_per_chunk))
    return self.programs['imagine'](frozen, clean_BFHWC, latents_BFHWC, start)

  def _choose_anchor(self, frames_BRIJ3: types.Array) -> types.Array:
    """[B, 1, I, J, 3], the newest frame of a call, with `sample.anchor` 'reference' not always.

    The reference takes the newest where a call has 4 frames, as its servers send them, and the
    oldest where it has those of a whole chunk. 4 come here with each repeated to make a chunk.
    Source: DreamZero `lazy_joint_video_action`.
    """
    oldest, newest = frames_BRIJ3[:, :1], frames_BRIJ3[:, -1:]
    if self.sample.anchor == 'newest':
      return newest
    # [B, frames sent, repetitions, ...].
    B, *image = frames_BRIJ3.shape[:1] + frames_BRIJ3.shape[2:]
    sent = np.asarray(frames_BRIJ3).reshape(B, -1, self.cfg.frames_per_chunk, *image)
    is_repeated = np.all(sent == sent[:, :, :1], axis=(1, 2, 3, 4, 5))
    return np.where(is_repeated[:, None, None, None, None], newest, oldest)
