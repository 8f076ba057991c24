"""Checkpoints: what is saved comes back, and what is damaged or unwritable loses nothing."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests import damaged
from tests import programs
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import storage
from wam_jax import train_step
from wam_jax.models import encoders
from wam_jax.models import tokenizer

CONFIG = cfg.from_config_dict(cfg.base())
DRAW = np.random.default_rng(0).standard_normal
# The same at every step, as in a run.
FROZEN = encoders.Encoders(
  tokenizer.PatchTokenizer(
    mean_P=DRAW(6, np.float32),
    encode_PC=DRAW((6, 2), np.float32),
    decode_CP=DRAW((2, 6), np.float32),
    temporal=CONFIG.model.tokenizer.temporal,
    spatial=CONFIG.model.tokenizer.spatial,
  ),
  text=None,
  image=None,
  config=CONFIG.model,
)
METADATA = {
  'config': cfg.to_dict(CONFIG),
  'data': {'embodiments': {'disc': {'id': 0}}},
  'encoders': encoders.fingerprint(FROZEN),
}


def make_state(step: int, width: int = 8, ema: bool = True) -> train_step.TrainState:
  """A state of the right structure whose numbers depend on `step`, spread over the devices."""
  mesh = jax.make_mesh((jax.device_count(),), ('data',))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  rng = np.random.default_rng(step)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  params = {'block': {'w': jax.device_put(draw(8, width), spread)}, 'scale': jnp.asarray(draw(3))}
  return train_step.TrainState(
    step=jnp.int32(step),
    params=params,
    ema_params=jax.tree.map(lambda x: 2 * x, params) if ema else None,
    opt_state=optax.adamw(1e-3).init(params),
    frozen=jax.tree.map(jnp.asarray, FROZEN),
  )


def abstract(state):
  return lambda frozen: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
  monkeypatch.setattr(storage, 'WAITS_S', (0.01, 0.01))


def save_steps(workdir, steps, keep=5, **kwargs):
  with checkpoint.Checkpoints(workdir, keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step, **kwargs), {'next': step}, METADATA)


def restore(workdir, like, said=None):
  with checkpoint.Checkpoints(workdir, 5) as checkpoints:
    return checkpoints.restore(CONFIG, abstract(like), (said if said is not None else []).append)


@pytest.mark.parametrize('ema', [True, False])
def test_all_of_the_state_comes_back(tmp_path, ema):
  save_steps(tmp_path, [3], ema=ema)
  want = make_state(3, ema=ema)
  got = restore(tmp_path, make_state(9, ema=ema))
  assert jax.tree.structure(got.state) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got.state, want)
  assert got.state.params['block']['w'].sharding == want.params['block']['w'].sharding
  assert (got.step, got.iterator_state) == (3, {'next': 3})
  assert got.metadata['data'] == METADATA['data']


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path, 2) as checkpoints:
    # Larger than elsewhere: a save that read its arrays late would find -1.
    state = make_state(1, width=4096)
    checkpoints.save(1, state, {}, METADATA)
    jax.block_until_ready(overwrite(state))
  got = restore(tmp_path, make_state(9, width=4096))
  jax.tree.map(np.testing.assert_array_equal, got.state, make_state(1, width=4096))


def test_only_the_newest_are_kept(tmp_path):
  save_steps(tmp_path, [1, 2, 3, 4], keep=2)
  assert checkpoint.list_steps(tmp_path) == [3, 4]


def test_empty_workdir_restores_nothing(tmp_path):
  assert restore(tmp_path, make_state(1)) is None


def cut_arrays(step_path):
  for path in (step_path / 'params').rglob('d/*'):
    path.write_bytes(path.read_bytes()[:16])


DAMAGE = {
  'arrays cut': cut_arrays,
  'item lost': lambda path: shutil.rmtree(path / 'ema_params'),
  'optimizer lost': lambda path: shutil.rmtree(path / 'optimizer' / 'd'),
  'iterator empty': lambda path: (path / 'iterator' / 'metadata').write_text(''),
  'metadata lost': lambda path: (path / 'metadata' / 'metadata').unlink(),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_checkpoint_is_skipped_and_its_step_saved_again(tmp_path, damage):
  save_steps(tmp_path, [1, 2])
  DAMAGE[damage](tmp_path / 'checkpoints' / '2')
  said = []
  got = restore(tmp_path, make_state(9), said)
  assert got.step == 1
  jax.tree.map(np.testing.assert_array_equal, got.state, make_state(1))
  assert len(said) == 1
  assert said[0].startswith('checkpoint 2 is incomplete and will not be used: ')
  assert (tmp_path / 'unreadable' / '2').is_dir()
  save_steps(tmp_path, [2])
  assert restore(tmp_path, make_state(9)).step == 2


def test_a_checkpoint_of_a_version_without_lists_of_files(tmp_path):
  save_steps(tmp_path, [1])
  (tmp_path / 'checkpoints' / '1' / 'files.json').unlink()
  got = restore(tmp_path, make_state(9))
  jax.tree.map(np.testing.assert_array_equal, got.state, make_state(1))
  assert checkpoint.load_for_inference(tmp_path).step == 1
  cut_arrays(tmp_path / 'checkpoints' / '1')
  with pytest.raises(checkpoint.CheckpointError, match=r'No checkpoint in .* can be read:\n  1: '):
    restore(tmp_path, make_state(9))


def test_an_error_that_may_pass_is_no_damage(tmp_path, capsys):
  save_steps(tmp_path, [1, 2])
  busy = OSError('503 Service Unavailable')
  with damaged.raising(ocp.PyTreeCheckpointHandler, 'restore', busy, times=2):
    assert restore(tmp_path, make_state(9)).step == 2
  with damaged.raising(ocp.PyTreeCheckpointHandler, 'restore', busy, times=2):
    assert checkpoint.load_for_inference(tmp_path).step == 2
  assert capsys.readouterr().out.count('503 Service Unavailable; again in 0.01 s') == 2
  for read in (checkpoint.load_for_inference, lambda path: restore(path, make_state(9))):
    with (
      damaged.raising(ocp.PyTreeCheckpointHandler, 'restore', busy, times=3),
      pytest.raises(checkpoint.PassingError, match='2 cannot be read: 503 .*\n.* was changed'),
    ):
      read(tmp_path)
  assert checkpoint.list_steps(tmp_path) == [1, 2]


def test_damaged_encoders_are_no_damage_of_a_checkpoint(tmp_path):
  save_steps(tmp_path, [1, 2])
  (place,) = (tmp_path / 'frozen').iterdir()
  file = next(place.rglob('d/*'))
  whole = file.read_bytes()
  file.write_bytes(whole[:16])
  for read in (checkpoint.load_for_inference, lambda path: restore(path, make_state(9))):
    with pytest.raises(
      checkpoint.CheckpointError,
      match=r'which others share, are damaged: .* has 16 of [\d,]+ bytes',
    ):
      read(tmp_path)
  assert checkpoint.list_steps(tmp_path) == [1, 2]
  file.write_bytes(whole)
  assert restore(tmp_path, make_state(9)).step == 2


def test_no_readable_checkpoint_is_an_error_and_moves_nothing(tmp_path):
  save_steps(tmp_path, [1, 2])
  for step in (1, 2):
    cut_arrays(tmp_path / 'checkpoints' / str(step))
  with pytest.raises(
    checkpoint.CheckpointError, match=r'No checkpoint in .* can be read:\n  2: .*\n  1: '
  ):
    restore(tmp_path, make_state(9))
  assert checkpoint.list_steps(tmp_path) == [1, 2]


def test_unfinished_save_is_never_picked_up(tmp_path):
  save_steps(tmp_path, [1])
  directory = tmp_path / 'checkpoints'
  # What a killed save leaves behind.
  shutil.copytree(directory / '1', directory / '2.orbax-checkpoint-tmp')
  assert checkpoint.list_steps(tmp_path) == [1]
  assert checkpoint.load_for_inference(tmp_path).step == 1
  # A reader must not disturb a training run's save.
  assert (directory / '2.orbax-checkpoint-tmp').exists()
  assert restore(tmp_path, make_state(9)).step == 1
  save_steps(tmp_path, [2])
  assert restore(tmp_path, make_state(9)).step == 2
  assert sorted(p.name for p in directory.iterdir()) == ['1', '2']


def fill_and_check(workdir):
  """Saves until the disk refuses; the error says so, and the checkpoint before is whole."""
  saved = []

  def fill():
    with checkpoint.Checkpoints(workdir, 2) as checkpoints:
      # Each is larger than the one before, so that the disk fills up within a few.
      for step in range(1, 12):
        checkpoints.save(step, make_state(step, width=400 * step), {'next': step}, METADATA)
        checkpoints.wait()
        saved.append(step)

  with pytest.raises(checkpoint.CheckpointError, match='; make room and run') as error:
    fill()
  saved = max(saved)
  assert 1 <= saved < 11
  newest = f'The newest complete checkpoint is {workdir}/checkpoints/{saved}; make room'
  assert newest in str(error.value)
  assert len(str(error.value)) < 1000
  got = restore(workdir, make_state(9, width=400 * saved))
  assert got.step == saved
  jax.tree.map(np.testing.assert_array_equal, got.state, make_state(saved, width=400 * saved))


def test_a_save_on_a_full_disk_fails_and_the_last_one_stays(tmp_path):
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(tmp_path)],
    check=False,
    capture_output=True,
  )
  if mounted.returncode:
    pytest.skip('mounting a small disk needs root; a file that cannot be written is tried without')
  try:
    fill_and_check(tmp_path)
  finally:
    subprocess.run(['umount', '--lazy', str(tmp_path)], check=True)


def test_a_save_that_cannot_be_written_fails_and_the_last_one_stays(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # Python ignores SIGXFSZ.
  try:
    fill_and_check(tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_failed_save_surfaces_without_waiting(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  with checkpoint.Checkpoints(tmp_path, 2) as checkpoints:
    checkpoints.save(1, make_state(1), {}, METADATA)
    checkpoints.wait()
    monkeypatch.setattr(checkpoints._writer, 'save', refuse)
    with pytest.raises(checkpoint.CheckpointError, match='step 2 .*No space left'):
      checkpoints.save(2, make_state(2), {}, METADATA)


@pytest.mark.parametrize('ema', [True, False])
def test_inference_gets_averaged_weights_and_no_optimizer(tmp_path, ema):
  save_steps(tmp_path, [1, 2], ema=ema)
  # Unreadable from here on: who asks for it fails.
  shutil.rmtree(tmp_path / 'checkpoints' / '2' / 'optimizer' / 'd')
  config, params, frozen, metadata, step, _ = checkpoint.load_for_inference(tmp_path)
  want = make_state(2, ema=ema)
  jax.tree.map(np.testing.assert_array_equal, params, want.eval_params)
  # On no device: the caller decides where they go.
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  assert jax.tree.structure(frozen) == jax.tree.structure(want.frozen)
  jax.tree.map(np.testing.assert_array_equal, frozen, want.frozen)
  assert (config, metadata, step) == (CONFIG, METADATA['data'], 2)
  assert checkpoint.load_for_inference(str(tmp_path), step=1).step == 1


def test_keys_added_since_get_their_default(tmp_path):
  save_steps(tmp_path, [1])
  path = tmp_path / 'checkpoints' / '1' / 'metadata' / 'metadata'
  stored = json.loads(path.read_text())
  # As a run has them that was begun before these keys existed.
  del stored['config']['model']['remat'], stored['config']['keep']
  path.write_text(json.dumps(stored))
  assert checkpoint.load_for_inference(tmp_path).config == CONFIG


def test_what_inference_cannot_load(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match='does not exist'):
    checkpoint.load_for_inference(tmp_path / 'nowhere')
  with pytest.raises(checkpoint.CheckpointError, match='not the workdir of a training run'):
    checkpoint.load_for_inference(tmp_path)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint yet'):
    checkpoint.load_for_inference(tmp_path)
  save_steps(tmp_path, [1, 2])
  with pytest.raises(checkpoint.CheckpointError, match='has no step 7; it has 1, 2'):
    checkpoint.load_for_inference(tmp_path, step=7)
  cut_arrays(tmp_path / 'checkpoints' / '2')
  shutil.rmtree(tmp_path / 'checkpoints' / '2' / 'ema_params' / 'd')
  assert checkpoint.load_for_inference(tmp_path).step == 1
  with pytest.raises(checkpoint.CheckpointError, match='can be read:\n  2: '):
    checkpoint.load_for_inference(tmp_path, step=2)


def test_mismatches_name_missing_unknown_and_reshaped_arrays():
  x = np.zeros((2, 3))
  assert checkpoint.list_mismatches(
    {'a': {'w': x}, 'b': x, 'd': x}, {'a': {'w': x.T}, 'c': x, 'd': x}
  ) == [
    'a/w: (2, 3) here, (3, 2) there',
    'b: (2, 3) here, absent there',
    'c: absent here, (2, 3) there',
  ]


@pytest.mark.slow
def test_two_processes_restore_the_same_step_or_none(tmp_path):
  port = programs.free_port(20000, 30000)
  devices = {'XLA_FLAGS': f'{programs.FAST_XLA} --xla_force_host_platform_device_count=2'}
  joint = [
    programs.Program('tests.damaged', port, number, tmp_path, variables=devices)
    for number in range(2)
  ]
  # A deadlock would be a time-out.
  outputs = [program.communicate(timeout=120) for program in joint]
  assert [program.returncode for program in joint] == [0, 0], outputs
  first, second = (
    [json.loads(line) for line in (tmp_path / f'{number}.jsonl').read_text().splitlines()]
    for number in range(2)
  )
  # The same step on both, or the same message.
  assert first == second
  found = {(name, host): what for name, host, what in first}
  for name in damaged.DAMAGES:
    # The one before, and the step that was damaged can be saved again.
    assert found.pop((name, None)) == ['step 1', [1], 'step 2'], name
  assert found.pop(('nothing was moved', None)) == [['checkpoints', 'frozen']]
  passing = ('busy for a moment', 'listing refused for a moment', 'listing differs')
  for (name, host), (outcome, steps) in found.items():
    assert steps == [1, 2], name
    # Where the steps are is the first host's to say.
    if name in passing or (name, host) == ('listing refused', 1):
      assert outcome == 'step 2', name
    else:
      assert f'host {host}' in outcome, name
      assert 'nothing was changed. Run the same' in outcome or 'listing' in name, outcome
      assert str(damaged.ERRORS[name][2]) in outcome, name
  assert len(found) == 2 * len(damaged.ERRORS) + 1
