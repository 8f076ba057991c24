"""The weights of a server follow its run: looks for newer checkpoints and hands them over.

Owns when it looks, and which checkpoints are taken. How episodes go on with the weights that they
began with is of `control.generations`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import workdir as workdir_lib
from wam_jax.control import generations as generations_lib
from wam_jax.data import robot as robot_lib

_LOG = logging.getLogger('wam_jax.serving.reloading')


class Reloader:
  """Looks for newer checkpoints of a run, in a thread of its own.

  Attributes:
    step: the step of the checkpoint that episodes begin with.
  """

  def __init__(
    self,
    generations: generations_lib.Generations,
    workdir: str,
    config: cfg.TrainConfig,
    step: int,
    tell: Callable[[int], None],
  ):
    """
    Args:
      config: of the checkpoint of `step`, which is served.
      tell: called with the step of new weights, once episodes begin with them.
    """
    self.step = step
    self._generations = generations
    self._workdir = workdir_lib.make_path(workdir)
    self._config = config
    self._tell = tell
    self._encoders = checkpoint.load_weights(self._workdir, step, is_read=False).encoders
    self._looked_at = step
    self._wakes = threading.Event()
    self._stops = threading.Event()
    self._thread: threading.Thread | None = None

  def start(self, every_s: float) -> None:
    """Looks every so many seconds from now on."""
    self._thread = threading.Thread(target=self._run, args=(every_s,), daemon=True, name='reload')
    self._thread.start()

  def stop(self, wait_s: float = 10.0) -> None:
    """Looks no more; waits for a checkpoint that is being read, which would fail loudly where the
    interpreter ends meanwhile.
    """
    self._stops.set()
    self._wakes.set()
    if self._thread is not None:
      self._thread.join(wait_s)

  def wake(self) -> None:
    """Looks now, soon after the call."""
    self._wakes.set()

  def look(self) -> bool:
    """Takes the newest checkpoint, if it is newer; whether it did. What cannot be taken is said in
    the log, once, and the weights stay.
    """
    newest = max(checkpoint.list_steps(self._workdir), default=self.step)
    if newest <= self._looked_at:
      return False
    self._looked_at = newest
    try:
      self._take(newest)
    except ValueError as e:
      _LOG.error('checkpoint %d is not served, %d still is: %s', newest, self.step, e)
      return False
    self.step = newest
    self._tell(newest)
    _LOG.info('new episodes begin with checkpoint %d', newest)
    return True

  def _take(self, step: int) -> None:
    loaded = checkpoint.load_weights(self._workdir, step)
    for name in ('model', 'flow'):
      if getattr(loaded.config, name) != getattr(self._config, name):
        raise ValueError(f'its config.{name} is another one; start the server again')
    if loaded.encoders != self._encoders:
      raise ValueError('its frozen encoders are others; start the server again')
    self._generations.replace(loaded.params, robot_lib.from_metadata(loaded.metadata), step)

  def _run(self, every_s: float) -> None:
    while True:
      self._wakes.wait(every_s)
      self._wakes.clear()
      if self._stops.is_set():
        return
      try:
        self.look()
      except OSError as e:
        # Storage that cannot be reached now: the next look tries again.
        self._looked_at = self.step
        _LOG.warning('looking for a newer checkpoint failed: %s', e)
      except Exception:
        # Such as a device whose memory is full after all: robots go on, and so do the looks.
        _LOG.exception('a newer checkpoint is not served, %d still is', self.step)
