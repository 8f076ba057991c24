"""Episodes of all sessions on the disk, in the format of `client.recorder`: whole or not there."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from wam_jax.client import recorder
from wam_jax.serving import description
from wam_jax.serving import metrics as metrics_lib
from wam_jax.serving import watching


@dataclasses.dataclass
class _Open:
  """An episode that is being written.

  Attributes:
    file: where to.
    steps: how many control steps its client has told.
    is_acted: whether a chunk was answered; without one there is nothing to keep.
  """

  file: recorder.File
  steps: int = 0
  is_acted: bool = False

  def check_step(self, step: int) -> None:
    if step != self.steps:
      raise ValueError(f'control steps {self.steps} to {step - 1} of an episode did not arrive')


class Recording(watching.Watcher):
  """Writes what was seen and done."""

  name = 'recorder'

  def __init__(
    self, directory: str | os.PathLike[str], about: Mapping[str, Any], metrics: metrics_lib.Metrics
  ):
    """
    Args:
      about: of the policy, kept in each file as it is when an episode begins, but for the step of
        the checkpoint, which each chunk has.
    Raises:
      OSError: nothing can be written there.
    """
    self._directory = pathlib.Path(directory).expanduser()
    self._about = about
    self._metrics = metrics
    self._open: dict[int, _Open] = {}
    self._directory.mkdir(parents=True, exist_ok=True)
    recorder.File(self._directory, '', {}).discard()  # Now, not with the first robot.

  def take(self, event: watching.Event) -> None:
    episode = self._open.get(event.episode)
    if isinstance(event, watching.Began):
      self._begin(event)
    elif episode is None:
      return
    elif isinstance(event, watching.Ended):
      self._end(episode, event)
    else:
      self._write(episode, event)

  def lose(self, episode: int) -> None:
    lost = self._open.pop(episode, None)
    if lost is not None:
      lost.file.discard()

  def close(self) -> None:
    for episode in list(self._open):
      self.lose(episode)

  def _begin(self, event: watching.Began) -> None:
    policy = {key: value for key, value in self._about.items() if key != 'checkpoint_step'}
    about = {
      **policy,
      **description.describe(event.record),
      'robot': event.record.name,
      'session': event.session,
      'began': event.why,
      'at_s': event.at_s,
    }
    self._open[event.episode] = _Open(recorder.File(self._directory, event.prompt, about))

  def _write(self, episode: _Open, event: watching.Event) -> None:
    file = episode.file
    if isinstance(event, watching.Saw):
      file.write({'observation': dict(event.observation), 'steps': event.steps_T})
    elif isinstance(event, watching.Answered):
      # Weights may be replaced between the beginning of an episode and its first chunk.
      by = {} if event.checkpoint_step is None else {'checkpoint_step': event.checkpoint_step}
      file.write({'actions': event.action_SU, 'step': event.window.step, **by})
      episode.is_acted = True
    elif isinstance(event, watching.Did):
      episode.check_step(event.step)
      file.write({'observation': dict(event.observation), 'action': event.action_U})
      episode.steps = event.step + 1

  def _end(self, episode: _Open, event: watching.Ended) -> None:
    if not episode.is_acted:
      self.lose(event.episode)
      return
    if event.steps is not None:
      episode.check_step(event.steps)
    episode.file.end(dict(event.outcome))
    del self._open[event.episode]
    self._metrics.recorded.add()
