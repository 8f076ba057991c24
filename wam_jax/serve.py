"""Serves a checkpoint to robots: WebSocket and msgpack, as openpi, RoboArena and DreamZero clients
speak it.

python -m wam_jax.serve --workdir=DIR [--host=0.0.0.0 --api_key_file=FILE] [--port=8000]

Answers on this machine alone unless --host says otherwise. The port opens when the policy is
compiled and warm; health, readiness, metrics and a page to watch are on --health_port from the
start. What clients send and get, and what begins an episode: docs/serving.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags

from wam_jax import checkpoint
from wam_jax import cli
from wam_jax import compilation_cache
from wam_jax import config as cfg
from wam_jax import reloading
from wam_jax import storage
from wam_jax import workdir as workdir_lib
from wam_jax.control import engine as engine_lib
from wam_jax.control import generations as generations_lib
from wam_jax.control import startup
from wam_jax.data import robot as robot_lib

with cli.needs('serve'):
  from wam_jax.serving import access
  from wam_jax.serving import board as board_lib
  from wam_jax.serving import health as health_lib
  from wam_jax.serving import history
  from wam_jax.serving import imagining
  from wam_jax.serving import journal
  from wam_jax.serving import live
  from wam_jax.serving import metrics as metrics_lib
  from wam_jax.serving import recording
  from wam_jax.serving import server as server_lib
  from wam_jax.serving import sessions as sessions_lib
  from wam_jax.serving import watching

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the training run or import to serve.', required=True
)
_STEP = flags.DEFINE_integer(
  'checkpoint_step', None, 'Step of the checkpoint; the newest by default.'
)
_HOST = flags.DEFINE_string(
  'host', '127.0.0.1', 'Address to listen on; 0.0.0.0 for all of this machine.'
)
_PORT = flags.DEFINE_integer('port', 8000, 'Of the policy; 0 for any that is free.', 0, 65535)
_HEALTH_PORT = flags.DEFINE_integer(
  'health_port',
  8001,
  'Of the page, /healthz, /readyz and /metrics; 0 for any that is free.',
  0,
  65535,
)
_ROBOT = flags.DEFINE_string(
  'robot', '', "Robot of requests that name none; by default the checkpoint's, if it has one only."
)
_REPLY = flags.DEFINE_enum(
  'reply',
  'dict',
  ('dict', 'array'),
  "What requests with an endpoint get: RoboArena's map, or the bare array of DreamZero's server.",
)
_FIRST = flags.DEFINE_enum(
  'first_message',
  'config',
  ('config', 'metadata'),
  "What a client is told first: RoboArena's six keys, or all there is, which only openpi takes.",
)
_RESOLUTION = flags.DEFINE_list(
  'image_resolution', None, "ROWS,COLUMNS that clients are asked for; by default the robot's."
)
_MISSING = flags.DEFINE_enum(
  'missing_views', 'error', ('error', 'black'), 'What a view is that a client does not send.'
)
_HISTORY = flags.DEFINE_enum(
  'history',
  history.SPACING,
  history.KINDS,
  "Frames at training's spacing, or the last four that came, as DreamZero's server takes them.",
)
_STEPS_PER_QUERY = flags.DEFINE_integer(
  'steps_per_query',
  0,
  'Control steps between two queries of clients that send no times; 0 for a whole chunk.',
  0,
)
_MOST = 1024  # Sessions; each has pictures in the memory of the host, too.
_SESSIONS = flags.DEFINE_integer(
  'sessions', 0, f'Most sessions at a time; 0 for as many as memory holds, to {_MOST}.', 0
)
_DEADLINE_S = flags.DEFINE_float(
  'deadline_s',
  None,
  'Seconds in which a chunk must be there, or is not computed; 0 for any, as suits simulators; the '
  "length of the robot's chunk by default.",
  0.0,
)
_RESET_AFTER_S = flags.DEFINE_float(
  'reset_after_s',
  0.0,
  'Seconds of silence that begin an episode, for clients that never say; 0 off.',
  0,
)
_RESET_ON_JUMP = flags.DEFINE_float(
  'reset_on_jump',
  0.0,
  'Change of the state between queries that begins an episode, where 2 is its whole range; 0 off.',
  0.0,
)
_TOGETHER = flags.DEFINE_enum(
  'together',
  None,
  [str(size) for size in engine_lib.SIZES],
  f'Most sessions of one pass over the weights, {engine_lib.SIZES[-1]} by default, 1 on a CPU, '
  'where more gain little; more take longer to compile, and more memory.',
)
_DETERMINISTIC = flags.DEFINE_bool(
  'deterministic',
  False,
  'All passes are of --together sessions, filled up by some that nobody acts on: then what a robot '
  'gets depends to the last bit on nobody else.',
)
_RECLAIM_AFTER_S = flags.DEFINE_float(
  'reclaim_after_s', 60.0, 'Seconds of silence after which a slot may go to another session.', 0.0
)
_API_KEY_FILE = flags.DEFINE_string(
  'api_key_file', '', "File with the key that clients must send, as 'Authorization: Api-Key KEY'."
)
_TLS_CERTIFICATE = flags.DEFINE_string(
  'tls_certificate', '', 'PEM file; clients connect by wss://.'
)
_TLS_KEY = flags.DEFINE_string('tls_key', '', 'PEM file of its key.')
_SAMPLING = cfg.list_choices(cfg.SampleConfig)
_MODE = flags.DEFINE_enum('mode', None, _SAMPLING['mode'], "Sampling; default: the config's.")
_STEPS = flags.DEFINE_integer('steps', None, "Denoising steps; default: the config's.", 1)
_GUIDANCE = flags.DEFINE_float(
  'guidance_scale', None, "Of the video, 1 for none; default: the config's.", 0.0
)
_PRECISION = flags.DEFINE_enum(
  'precision',
  None,
  _SAMPLING['precision'],
  "Of weights and products; default: the config's. int8, w8a8 and fp8 need the extra `quant`.",
)
_MESH = cli.define_mesh("default: the config's, else one device.")
_SEED = flags.DEFINE_integer('seed', 0, "Seed of each episode's noise.", 0)
_IMAGINE = flags.DEFINE_enum(
  'imagine',
  imagining.SPARE,
  imagining.KINDS,
  'When imagined video is decoded for those who watch: in spare time, so that no answer waits for '
  'it; always, at once; or off.',
)
_RECORD = flags.DEFINE_string(
  'record', '', 'Directory where every episode is written, for python -m data.from_sessions.'
)
_FILMS = flags.DEFINE_string(
  'films', '', 'Directory of an MP4 of each episode: what was seen beside what was imagined.'
)
_RERUN = flags.DEFINE_string(
  'rerun',
  '',
  'Viewer that is sent everything, as rerun+http://127.0.0.1:9876/proxy, or a file NAME.rrd.',
)
_RELOAD_S = flags.DEFINE_float(
  'reload_s',
  0.0,
  'Seconds between looks for a newer checkpoint, with which new episodes then begin; SIGHUP looks '
  'at once. Keeps memory for two sets of weights; 0 for neither.',
  0.0,
)
_LOG = flags.DEFINE_enum(
  'log', journal.TEXT, journal.FORMS, 'Lines of the log, which goes to stderr.'
)
_GRACE_S = flags.DEFINE_float(
  'grace_s', 10.0, 'Seconds for answers that are under way when the server is told to stop.', 0.0
)
_CACHE = compilation_cache.define_flag()
_REHEARSAL_S = 1.0  # Of a tiny policy some hundred chunks; two episodes at least.
_MOST_PIXELS = 4096  # Of a side of an image that clients are asked for.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOPBACK = ('127.0.0.1', '::1', 'localhost')


def main(unused_argv: Sequence[str]) -> None:
  # Both could be held, and only one listened on, once all is compiled.
  if _PORT.value and _PORT.value == _HEALTH_PORT.value:
    raise ValueError(f'--port and --health_port are both {_PORT.value}: give one another number.')
  journal.keep(_LOG.value)
  options = _make_options()
  metrics = metrics_lib.Metrics()
  about: dict[str, Any] = {}
  watchers = list(_make_watchers(about, metrics))
  health_port = access.hold_port(_HOST.value, _HEALTH_PORT.value, '--health_port')
  health = health_lib.Health(health_port, metrics, options.api_key)
  print(f'page, health, readiness, metrics: http://{_HOST.value}:{health.port}', flush=True)

  compilation_cache.keep(_CACHE.value, workdir_lib.make_path(_WORKDIR.value), is_private=True)
  watch = startup.Watch()
  health.stage = 'loading the checkpoint'
  engine, config, step = _load_engine()
  about.update(policy=config.name, checkpoint_step=step)
  robot = _choose_robot(engine.robots)
  rules = _make_rules(engine.newest, robot)

  health.stage = 'compiling'
  seconds = engine.warm(imagines=_IMAGINE.value != imagining.OFF)
  _print_engine(engine.newest, about, rules, seconds)
  deadline_s = _choose_deadline(engine.robots, robot)
  options = dataclasses.replace(options, deadline_s=deadline_s)
  _watch_programs(metrics, watch, about)
  board = board_lib.Board({**about, **_describe(list(engine.robots), rules)}, metrics)
  health.board = board
  server = server_lib.Server(engine, rules, options, metrics, about, [*watchers, board])
  reloader = None
  if _RELOAD_S.value:

    def tell(step: int) -> None:
      about['checkpoint_step'] = step
      server.note(checkpoint_step=step)
      board.note(checkpoint_step=step)

    reloader = reloading.Reloader(engine, _WORKDIR.value, config, step, tell)
  asyncio.run(_serve(server, health, watch, reloader))
  if reloader is not None:
    reloader.stop()


def _make_options() -> server_lib.Options:
  """What the flags say of how the server answers, but for what depends on the checkpoint."""
  return server_lib.Options(
    reply_array=_REPLY.value == 'array',
    sends_metadata=_FIRST.value == 'metadata',
    resolution=_read_resolution(),
    fills_missing_views=_MISSING.value == 'black',
    api_key=access.load_api_key(_API_KEY_FILE.value) if _API_KEY_FILE.value else None,
    tls=access.load_tls(_TLS_CERTIFICATE.value, _TLS_KEY.value),
    rehearsal_s=_REHEARSAL_S,
    held=access.hold_port(_HOST.value, _PORT.value),
    imagines=_IMAGINE.value,
    records=bool(_RECORD.value),
    grace_s=_GRACE_S.value,
  )


def _load_engine() -> tuple[generations_lib.Generations, cfg.TrainConfig, int]:
  """The engine of the checkpoint that the flags name, its config as it is sampled, and its step.
  Nobody else holds the weights: they leave when others take their place.
  """
  trained = checkpoint.load_for_inference(_WORKDIR.value, _STEP.value)
  given = {
    'mode': _MODE.value,
    'steps': _STEPS.value,
    'guidance_scale': _GUIDANCE.value,
    'precision': _PRECISION.value,
    'mesh': cli.read_mesh(_MESH),
  }
  sample = cfg.override_sampling(trained.config.sample, given)
  config = dataclasses.replace(trained.config, sample=sample)
  for note in cfg.list_untried(sample):
    print(note, flush=True)
  engine = engine_lib.Engine(
    config,
    trained.params,
    trained.frozen,
    robot_lib.from_metadata(trained.metadata),
    _SEED.value,
    # No more than there may be at all.
    together=min(_choose_together(), _SESSIONS.value or _MOST),
    deterministic=_DETERMINISTIC.value,
  )
  return generations_lib.Generations(engine, trained.step), config, trained.step


def _print_engine(
  engine: engine_lib.Engine,
  about: Mapping[str, Any],
  rules: sessions_lib.Rules,
  seconds: float,
) -> None:
  print(
    f'{about["policy"]}, step {about["checkpoint_step"]}, for {", ".join(engine.robots)}; warm '
    f'after {seconds:.1f} s; {rules.slots} sessions of {engine.session_bytes / 2**10:.0f} KiB '
    f'each, {engine.rows} a pass; {engine.weight_bytes / 1e6:.2f} MB of weights',
    flush=True,
  )


def _watch_programs(
  metrics: metrics_lib.Metrics, watch: startup.Watch, about: Mapping[str, Any]
) -> None:
  metrics.watch('wam_late_programs_total', 'Programs not made ahead.', lambda: watch.made_late)
  metrics.watch(
    'wam_checkpoint_step',
    'Of the weights that episodes begin with.',
    lambda: about['checkpoint_step'],
  )


async def _serve(
  server,
  health: health_lib.Health,
  watch: startup.Watch,
  reloader: reloading.Reloader | None,
) -> None:
  """Serves until SIGTERM or SIGINT."""
  loop = asyncio.get_running_loop()
  stops = asyncio.Event()

  def stop() -> None:
    stops.set()
    # The second one does not wait: Python would turn SIGINT into an exception, and that into an end
    # which waits for the device and for those who watch.
    for number in _SIGNALS:
      loop.remove_signal_handler(number)
      signal.signal(number, signal.SIG_DFL)

  for number in _SIGNALS:
    loop.add_signal_handler(number, stop)
  async with server.listen():
    scheme = 'wss' if server.options.tls else 'ws'
    print(f'policy: {scheme}://{_HOST.value}:{server.port}', flush=True)
    if _HOST.value not in _LOOPBACK and not server.options.api_key:
      print(
        f'note: whoever reaches {_HOST.value} can drive this policy; --api_key_file asks for a key',
        file=sys.stderr,
      )
    print(watch.note_ready(), flush=True)
    health.stage = ''
    if reloader is not None:
      loop.add_signal_handler(signal.SIGHUP, reloader.wake)
      reloader.start(_RELOAD_S.value)
    await stops.wait()
    health.stage = 'stopping'
  health.close()
  print('stopped', flush=True)


def _describe(robots: Sequence[str], rules: sessions_lib.Rules) -> dict[str, Any]:
  """What the page says beside what the metadata do."""
  return {'robots': robots, 'slots': rules.slots, 'record': bool(_RECORD.value)}


def _make_watchers(
  about: Mapping[str, Any], metrics: metrics_lib.Metrics
) -> Iterator[watching.Watcher]:
  """Those beside the page that the flags ask for."""
  if _RECORD.value:
    yield recording.Recording(_make_place(_RECORD.value, '--record'), about, metrics)
  if _FILMS.value:
    yield _import_films().Films(_make_place(_FILMS.value, '--films'))
  if _RERUN.value:
    yield live.Live(_RERUN.value)


def _make_place(path: str, flag: str) -> pathlib.Path:
  cure = 'Give a directory, and copy what is in it later.'
  place = storage.make_local_path(path, flag, cure)
  storage.check_directory(place, flag)
  return place


def _import_films():
  """The module that needs pictures and an encoder."""
  try:
    from wam_jax.serving import films
  except ModuleNotFoundError as e:
    raise ValueError(f"--films needs the package {e.name}: pip install -e '.[sim]'.") from e
  return films


def _choose_together() -> int:
  if _TOGETHER.value is not None:
    return int(_TOGETHER.value)
  return 1 if jax.default_backend() == 'cpu' else engine_lib.SIZES[-1]


def _choose_robot(robots: Mapping[str, robot_lib.Robot]) -> str:
  """The robot of requests that name none; '' where they must."""
  if _ROBOT.value and _ROBOT.value not in robots:
    raise ValueError(f'--robot={_ROBOT.value} must be one of {sorted(robots)}.')
  if _ROBOT.value or len(robots) > 1:
    return _ROBOT.value
  return next(iter(robots))


def _choose_deadline(robots: Mapping[str, robot_lib.Robot], robot: str) -> float:
  if _DEADLINE_S.value is not None:
    return _DEADLINE_S.value
  chosen = [robots[robot]] if robot else robots.values()
  return max(one.record.chunk_s for one in chosen)


def _make_rules(engine: engine_lib.Engine, robot: str) -> sessions_lib.Rules:
  reserved = engine.weight_bytes if _RELOAD_S.value else 0
  most = min(engine.count_sessions(reserved), _MOST)
  slots = _SESSIONS.value or most
  if slots > most or not most:
    raise ValueError(
      f'--sessions={slots} need {engine.session_bytes / 2**20:.0f} MiB each; '
      f'there is room for {most}.'
    )
  return sessions_lib.Rules(
    slots=slots,
    robot=robot,
    history=_HISTORY.value,
    steps_per_query=_STEPS_PER_QUERY.value,
    frames_per_call=engine.frames_per_call,
    reset_after_s=_RESET_AFTER_S.value,
    reset_on_jump=_RESET_ON_JUMP.value,
    reclaim_after_s=_RECLAIM_AFTER_S.value,
  )


def _read_resolution() -> tuple[int, int] | None:
  given = _RESOLUTION.value
  if not given:
    return None
  most = _MOST_PIXELS
  if len(given) != 2 or not all(part.isdigit() and 0 < int(part) <= most for part in given):
    raise ValueError(
      f'--image_resolution={",".join(given)} must be ROWS,COLUMNS, as 180,320, of at most {most} '
      'pixels.'
    )
  return int(given[0]), int(given[1])


if __name__ == '__main__':
  cli.run(main)
