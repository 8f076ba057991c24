"""`MetaworldEnv`: Meta-World's 50 tasks with a Sawyer arm in MuJoCo, as a world of `worlds.Env`.

Owns views, instructions, seeds and drawing; tasks, rewards and experts are those of the package
`metaworld` (optional: pip install -e '.[metaworld]'). Draws without a screen, by EGL or OSMesa,
without shadows, reflections and multisampling, which together cost six times as much as everything
else.
"""

from __future__ import annotations

import importlib
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Simulator steps (1/80 s) per control step: halves the images, and experts succeed as often.
ACTION_REPEAT = 2
CONTROL_HZ = 80 / ACTION_REPEAT
LIMIT = 500 // ACTION_REPEAT  # Control steps; 500 of the simulator are Meta-World's own horizon.
# `corner4` is what papers call corner2 with its position changed.
VIEWS = ('corner', 'corner4', 'gripperPOV')
ALL_VIEWS = (*VIEWS, 'corner2', 'corner3', 'topview', 'behindGripper')
# As Meta-World has them; drawn turned here.
UPSIDE_DOWN = ('corner', 'corner2', 'corner3', 'corner4')
BACKENDS = ('egl', 'osmesa')

TASKS = {
  'assembly': 'pick up the ring by its handle and put it on the peg',
  'basketball': 'drop the ball through the hoop',
  'bin-picking': 'move the block from one bin into the other',
  'box-close': 'put the lid on the box',
  'button-press-topdown': 'press the button down',
  'button-press-topdown-wall': 'reach over the wall and press the button down',
  'button-press': 'press the button in',
  'button-press-wall': 'reach over the wall and press the button in',
  'coffee-button': 'press the button of the coffee machine',
  'coffee-pull': 'pull the mug away from the coffee machine',
  'coffee-push': 'push the mug under the coffee machine',
  'dial-turn': 'turn the dial',
  'disassemble': 'take the ring off the peg',
  'door-close': 'close the door',
  'door-lock': 'lock the door',
  'door-open': 'open the door',
  'door-unlock': 'unlock the door',
  'hand-insert': 'put the block into the hole',
  'drawer-close': 'close the drawer',
  'drawer-open': 'open the drawer',
  'faucet-open': 'open the faucet',
  'faucet-close': 'close the faucet',
  'hammer': 'drive the nail in with the hammer',
  'handle-press-side': 'press down the handle that points to the side',
  'handle-press': 'press down the handle',
  'handle-pull-side': 'pull up the handle that points to the side',
  'handle-pull': 'pull up the handle',
  'lever-pull': 'pull the lever up',
  'peg-insert-side': 'put the peg into the hole in the side of the box',
  'pick-place-wall': 'lift the puck over the wall to the goal',
  'pick-out-of-hole': 'pick the puck out of the hole',
  'reach': 'move the hand to the goal',
  'push-back': 'push the block back to the goal',
  'push': 'push the puck to the goal',
  'pick-place': 'lift the puck to the goal',
  'plate-slide': 'slide the plate into the cabinet',
  'plate-slide-side': 'slide the plate sideways into the cabinet',
  'plate-slide-back': 'slide the plate out of the cabinet',
  'plate-slide-back-side': 'slide the plate sideways out of the cabinet',
  'peg-unplug-side': 'pull the peg out of the side of the box',
  'soccer': 'push the ball into the goal',
  'stick-push': 'push the thermos with the stick',
  'stick-pull': 'pull the thermos with the stick',
  'push-wall': 'push the puck around the wall to the goal',
  'reach-wall': 'move the hand over the wall to the goal',
  'shelf-place': 'put the block on the shelf',
  'sweep-into': 'sweep the block into the hole',
  'sweep': 'sweep the block off the table',
  'window-open': 'slide the window open',
  'window-close': 'slide the window closed',
}


class MetaworldEnv:
  """One arm, one table, one task per episode; deterministic by the seed of `reset`.

  Attributes:
    embodiment: 'metaworld'.
    task, instruction: those of this episode.
    control_hz: control steps per second of simulated time.
    state: float64 [39], the true state with the goal, for experts and tests.
    success: whether Meta-World's condition held after some step of this episode.
  """

  embodiment = 'metaworld'
  control_hz = CONTROL_HZ
  action_dim = 4
  max_steps = LIMIT

  def __init__(
    self,
    tasks: Sequence[str],
    view_size: int = 128,
    backend: str = 'egl',
    time_limit_s: float = 0.0,
  ):
    """Checks the choices; call `reset` before anything else.

    Args:
      tasks: names of `TASKS`; each episode draws one.
      view_size: pixels of the square views in observations.
      backend: 'egl' or 'osmesa'; a process can have one of them only.
      time_limit_s: of an episode, at most and by default that of Meta-World, which is 0.
    Raises:
      ValueError: an unknown name or a number out of range; all of them. Or `metaworld` is not
        installed.
    """
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    problems = [
      f'task={task!r} must be one of {tuple(TASKS)}' for task in tasks if task not in TASKS
    ]
    if not tasks:
      problems.append(f'tasks is empty; choose from {tuple(TASKS)}')
    if not 8 <= view_size <= 2048:
      problems.append(f'view_size={view_size} must be 8 ... 2048 pixels')
    if backend not in BACKENDS:
      problems.append(f'backend={backend!r} must be one of {BACKENDS}')
    # Meta-World itself ends an episode then.
    if not 0 <= time_limit_s <= LIMIT / CONTROL_HZ:
      problems.append(
        f'time_limit_s={time_limit_s} must be 0, or at most {LIMIT / CONTROL_HZ:g} seconds'
      )
    if problems:
      raise ValueError('; '.join(problems) + '.')
    if time_limit_s:
      self.max_steps = math.ceil(time_limit_s * CONTROL_HZ)
    _import('metaworld')
    self.tasks = tasks
    self.task = ''
    self._view_size = view_size
    self._backend = backend
    self._world: Any = None
    self._camera: _Camera | None = None

  def reset(self, seed: int) -> dict[str, np.ndarray]:
    """Starts the episode of `seed`; the first observation.

    Returns:
      'corner', 'corner4', 'gripperPOV': uint8 [s, s, 3] RGB, upright; 'proprio': float32 [4], see
      `proprio`.
    Raises:
      ValueError: nothing can be drawn with this backend here.
    """
    task = self.tasks[int(np.random.default_rng(seed).integers(len(self.tasks)))]
    if task != self.task:
      self.close()
      self.task = task
      self._world = _make_world(task)
      self._camera = _Camera(self._world.model, self._backend)
    self._world.seed(seed)
    self.state = self._world.reset()[0]
    self._steps = 0
    self.success = False
    return self._observe()

  def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
    """Applies one action for two simulator steps and returns the observation after it.

    Args:
      action: [4] displacement of the hand along x, y, z, 1 for 0.02 m in all, and the fingers'
        effort, above 0 closing; clipped to [-1, 1].
    Raises:
      ValueError: wrong shape, or not finite.
      RuntimeError: `reset` was not called.
    """
    if self._world is None:
      raise RuntimeError('Call reset(seed) before step(action).')
    action = np.asarray(action, np.float64)
    if action.shape != (self.action_dim,) or not np.isfinite(action).all():
      raise ValueError(f'action={action.tolist()} must be {self.action_dim} finite numbers.')
    for _ in range(ACTION_REPEAT):
      self.state, _, _, _, told = self._world.step(np.clip(action, -1, 1))
      self.success |= bool(told['success'])
    self._steps += 1
    return self._observe()

  @property
  def instruction(self) -> str:
    """Lower-case words of this episode's goal."""
    return TASKS[self.task]

  @property
  def time_s(self) -> float:
    """Simulated time since reset."""
    return self._steps / self.control_hz

  @property
  def proprio(self) -> np.ndarray:
    """float32 [4]: the hand's position in metres (x right, y away from the robot, z up); fingers 0
    closed to 1 open.
    """
    return self.state[:4].astype(np.float32)

  def render(self, size: int, view: str = 'corner4') -> np.ndarray:
    """uint8 [size, size, 3] RGB, drawn at that resolution.

    Raises:
      ValueError: unknown view.
    """
    if view not in ALL_VIEWS:
      raise ValueError(f'view={view!r} must be one of {ALL_VIEWS}.')
    return self._camera.image(self._world.data, view, size)

  def close(self) -> None:
    """Frees what drawing needs; `reset` makes it anew."""
    if self._camera is not None:
      self._camera.close()
    self.task = ''
    self._world = None
    self._camera = None

  def _observe(self) -> dict[str, np.ndarray]:
    views = {view: self.render(self._view_size, view) for view in VIEWS}
    return {**views, 'proprio': self.proprio}


def make_expert(env: MetaworldEnv, seed: int, noise: float) -> Callable[[], np.ndarray]:
  """Meta-World's scripted policy for the env's current episode: a function that gives the next
  action, [4] in [-1, 1].

  Args:
    seed: seed of the noise.
    noise: standard deviation of what is added to each action.
  """
  policy = _import('metaworld.policies').ENV_POLICY_MAP[f'{env.task}-v3']()
  rng = np.random.default_rng(seed)

  def act():
    with warnings.catch_warnings():
      # It warns that actions exceed [-1, 1]; here they are clipped.
      warnings.simplefilter('ignore')
      action = policy.get_action(env.state)
    return np.clip(np.clip(action, -1, 1) + rng.normal(0, noise, 4), -1, 1).astype(np.float32)

  return act


def _make_world(task: str) -> Any:
  """A Meta-World environment that draws new positions at each reset, from its seed, and shows its
  goal to experts.
  """
  world = _import('metaworld.env_dict').ALL_V3_ENVIRONMENTS[f'{task}-v3']()
  world.max_path_length = math.inf  # The caller ends the episode.
  # The package has no public way to these: positions that are drawn anew, and a goal that shows.
  world.seeded_rand_vec = True
  world._freeze_rand_vec = False  # noqa: SLF001
  world._set_task_called = True  # noqa: SLF001
  world._partially_observable = False  # noqa: SLF001
  # Cached while the goal was hidden, with bounds that hide it.
  vars(world).pop('sawyer_observation_space', None)
  return world


class _Camera:
  """Draws one model off screen; context and buffers are its own."""

  def __init__(self, model: Any, backend: str):
    mujoco = _import('mujoco')
    self._mujoco = mujoco
    self._model = model
    self._size = 0  # Of the buffers.
    model.vis.quality.offsamples = 0
    try:
      self._context = importlib.import_module(f'mujoco.{backend}').GLContext(64, 64)
      self._context.make_current()
    except Exception as error:  # The libraries raise what they like, down to AttributeError.
      raise ValueError(
        f'Cannot draw by {backend} here ({type(error).__name__}: {error}). Install its library '
        '(libegl1 with a driver, or libosmesa6), or choose the other one of '
        f'{BACKENDS}.'
      ) from error
    self._scene = mujoco.MjvScene(model, maxgeom=2000)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
      self._scene.flags[flag] = 0
    self._option = mujoco.MjvOption()
    self._view = mujoco.MjvCamera()
    self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
    self._buffers = []
    # At exit at the latest.
    self.close = weakref.finalize(self, _free, self._context, self._buffers)

  def image(self, data: Any, view: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3] RGB of a camera of the model, upright."""
    mujoco = self._mujoco
    self._context.make_current()
    if size > self._size:
      self._resize(size)
    self._view.fixedcamid = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, view)
    mujoco.mjv_updateScene(
      m=self._model,
      d=data,
      opt=self._option,
      pert=None,  # Nothing is pushed about by hand.
      cam=self._view,
      catmask=mujoco.mjtCatBit.mjCAT_ALL,
      scn=self._scene,
    )
    area = mujoco.MjrRect(0, 0, size, size)
    image = np.empty((size, size, 3), np.uint8)
    mujoco.mjr_render(area, self._scene, self._buffers[0])
    mujoco.mjr_readPixels(image, None, area, self._buffers[0])
    # OpenGL counts rows from below; half a turn on top of that leaves the rows and mirrors the
    # columns.
    return np.ascontiguousarray(image[:, ::-1] if view in UPSIDE_DOWN else image[::-1])

  def _resize(self, size: int) -> None:
    while self._buffers:
      self._buffers.pop().free()
    mujoco = self._mujoco
    self._size = size
    self._model.vis.global_.offwidth = size
    self._model.vis.global_.offheight = size
    self._buffers.append(mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100))
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._buffers[0])


def _free(context: Any, buffers: list[Any]) -> None:
  context.make_current()
  while buffers:
    buffers.pop().free()
  context.free()


def _import(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f"Meta-World needs the package {name}: pip install -e '.[metaworld]'."
    ) from error
