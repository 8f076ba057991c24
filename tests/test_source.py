"""Weights of another run on many hosts: each reads and holds its share, and a mistake is one
message on all.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests import object_store
from tests import programs
from tests import shares
from tests import test_checkpoint
from tests.test_checkpoint import METADATA
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import identity
from wam_jax import source
from wam_jax import start
from wam_jax import storage
from wam_jax.models import encoders

HOSTS = 4


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
  monkeypatch.setattr(storage, 'WAITS_S', (0.01, 0.01))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  place = tmp_path_factory.mktemp('bases')
  shares.write_import(place / 'import')
  shares.write_lora_run(place / 'lora')
  shutil.copytree(place / 'import', place / 'cut')
  for path in (place / 'cut' / 'checkpoints' / '0' / 'params').rglob('d/*'):
    path.write_bytes(path.read_bytes()[:16])
  return place


def test_rules_that_no_array_shows_are_compared():
  one = cfg.TrainConfig()
  model = dataclasses.replace(
    one.model, video_sees='video', history_rule='reference_global', action_overlap=2
  )
  other = dataclasses.replace(one, model=model, flow=cfg.FlowConfig(video_hidden=0.2))
  assert source.describe_rules(one, one) == []
  assert source.describe_rules(other, one) == [
    'config.flow.video_hidden=0.2 (0.0 there)',
    "config.model.history_rule='reference_global' ('chunk' there)",
    "config.model.video_sees='video' ('all' there)",
    'config.model.action_overlap=2 (0 there)',
  ]


def count_bytes(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_each_host_reads_and_holds_its_share_and_hears_of_every_mistake(root):
  port = programs.free_port(20000, 30000)
  devices = f'{programs.FAST_XLA} --xla_force_host_platform_device_count={shares.DEVICES // HOSTS}'
  joint = [
    programs.Program('tests.shares', port, n, HOSTS, root, variables={'XLA_FLAGS': devices})
    for n in range(HOSTS)
  ]
  outputs = [program.communicate(timeout=200) for program in joint]
  assert [program.returncode for program in joint] == [0] * HOSTS, '\n'.join(map(str, outputs))
  told = [
    [json.loads(line) for line in stdout.splitlines() if line[0] == '{'] for stdout, _ in outputs
  ]
  for one in told:
    print(one)

  weights = count_bytes(shares.draw_params(shares.MODEL))
  frozen = count_bytes(encoders.to_tree(shares.draw_encoders()))
  for number, base in enumerate(('import', 'lora')):
    alone = shares.start_from(root / base)
    for one in told:
      found = one[number]
      # The same numbers as with one process, from weights of the same name.
      for key in ('params', 'frozen', 'base', 'encoders'):
        assert found[key] == alone[key], (base, key)
      for name, size in (('read_params', weights), ('read_encoders', frozen)):
        read, peak = found['read'][name]
        # Lists of arrays, what is too small to be cut, and the pages of files beside.
        assert read < 1.3 * size / HOSTS + 2**20, (base, name, read)
        # What is read, and what is being unpacked; 8 MB are of threads.
        assert peak < 2.5 * size / HOSTS + 8 * 2**20, (base, name, peak)
      assert found['held'] < 1.1 * (weights + frozen) / HOSTS

  for one in told:
    errors = [found['error'] for found in one[2:]]
    assert errors == [found['error'] for found in told[0][2:]]
    shapes, *absent, cut = errors
    assert (
      'does not fit config.model; 3 arrays differ:\n  blocks/ffn/in/b: (3, 1024) here' in shapes
    )
    for number, message in enumerate(absent):
      assert f'on 1 of {HOSTS} hosts. host {number} ' in message
      assert 'has no checkpoint yet' in message
    assert f'No checkpoint in {root}/cut/checkpoints can be read' in cut
    assert max(found['seconds'] for found in one[2:]) < 60


def write_vocabulary(workdir, texts) -> None:
  sentencepiece = pytest.importorskip('sentencepiece', reason="pip install -e '.[umt5]'")
  pytest.importorskip('ftfy', reason="pip install -e '.[umt5]'")
  workdir.mkdir(exist_ok=True)
  with (workdir / 'tokenizer.model').open('wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts * 20),
      model_writer=file,
      vocab_size=30,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      hard_vocab_limit=False,
      minloglevel=2,
    )


def test_a_base_of_another_vocabulary_is_refused(tmp_path):
  base = tmp_path / 'base'
  write_vocabulary(base, ['push it to a robot', 'a multi view video'])
  opened = source.Source(
    place=base / 'checkpoints' / '1',
    config=shares.make_config(base),
    metadata={},
    stored={},
    frozen=test_checkpoint.FROZEN,
  )
  check = lambda workdir: start._check_same_vocabulary(
    shares.make_config(base), opened, 'init_from', workdir
  )
  write_vocabulary(tmp_path / 'same', ['push it to a robot', 'a multi view video'])
  check(tmp_path / 'same')
  write_vocabulary(tmp_path / 'other', ['the drawer opens', 'a camera shows that'])
  with pytest.raises(ValueError, match='has another vocabulary .* by .*base.* by .*other'):
    check(tmp_path / 'other')


def make_old(workdir) -> None:
  """Makes the checkpoints what they were before: encoders inside, and no hashes."""
  (stored,) = (workdir / 'frozen').iterdir()
  for place in (workdir / 'checkpoints').iterdir():
    shutil.copytree(stored, place / 'frozen')
    (place / 'files.json').unlink()
    file = place / 'metadata' / 'metadata'
    metadata = json.loads(file.read_text())
    assert metadata.pop('weights')
    assert metadata.pop('encoders')
    file.write_text(json.dumps(metadata | {'items': [*metadata['items'], 'frozen']}))
  shutil.rmtree(workdir / 'frozen')


@pytest.mark.parametrize('ema', [True, False])
def test_a_checkpoint_of_before_holds_its_encoders_and_is_hashed_once(tmp_path, ema):
  test_checkpoint.save_steps(tmp_path, [1, 2], ema=ema)
  state = test_checkpoint.make_state(2, ema=ema)
  said = []
  new = shares.read_source(tmp_path, said.append)
  assert not said
  assert new[2:] == (identity.hash_arrays(state.eval_params), METADATA['encoders'])

  make_old(tmp_path)
  old = shares.read_source(tmp_path, said.append)
  assert ['hashing the weights' in line for line in said] == [True, False]
  assert 'hashing the encoders in' in said[1]
  assert old[2:] == new[2:]
  jax.tree.map(np.testing.assert_array_equal, old[:2], (state.eval_params, state.frozen))

  # Evaluation and the run itself find them where they are; what is saved next stores them once.
  jax.tree.map(
    np.testing.assert_array_equal, checkpoint.load_for_inference(tmp_path).frozen, state.frozen
  )
  got = test_checkpoint.restore(tmp_path, test_checkpoint.make_state(9, ema=ema))
  jax.tree.map(np.testing.assert_array_equal, got.state, state)
  test_checkpoint.save_steps(tmp_path, [3], ema=ema)
  assert not (tmp_path / 'checkpoints' / '3' / 'frozen').exists()
  assert len(list((tmp_path / 'frozen').iterdir())) == 1
  assert shares.read_source(tmp_path, said.append)[2] != old[2]
  assert len(said) == 2


def test_encoders_are_stored_once_and_whole(tmp_path):
  test_checkpoint.save_steps(tmp_path, [1])
  (stored,) = (tmp_path / 'frozen').iterdir()
  written = {path: path.stat().st_mtime_ns for path in stored.rglob('*')}
  test_checkpoint.save_steps(tmp_path, [2])
  assert {path: path.stat().st_mtime_ns for path in stored.rglob('*')} == written

  # What a kill leaves has another name, and is written over.
  shutil.rmtree(tmp_path / 'checkpoints')
  half = stored.rename(stored.with_name(f'{stored.name}.orbax-checkpoint-tmp'))
  next(half.rglob('d/*')).unlink()
  test_checkpoint.save_steps(tmp_path, [1])
  assert list((tmp_path / 'frozen').iterdir()) == [stored]
  got = test_checkpoint.restore(tmp_path, test_checkpoint.make_state(9))
  jax.tree.map(np.testing.assert_array_equal, got.state.frozen, test_checkpoint.FROZEN)


@pytest.mark.slow
def test_a_base_in_a_bucket_is_read_there(tmp_path):
  """Of a program of its own, as TensorStore reads its variables but once."""
  test_checkpoint.save_steps(tmp_path / 'new', [1])
  shutil.copytree(tmp_path / 'new', tmp_path / 'old')
  make_old(tmp_path / 'old')
  want = identity.hash_arrays(test_checkpoint.make_state(1).eval_params)
  with object_store.ObjectStore() as store:
    for path in tmp_path.rglob('*'):
      if path.is_file():
        name = path.relative_to(tmp_path).as_posix()
        store.objects[name] = (next(store.generations), path.read_bytes())
    bases = [f'gs://{object_store.BUCKET}/{name}' for name in ('new', 'old')]
    done = programs.run('tests.shares', *bases, variables=store.environment)
  assert done.returncode == 0, done.stderr
  found = [json.loads(line) for line in done.stdout.splitlines() if line[0] == '[']
  assert found == [[want, METADATA['encoders']]] * 2
  assert done.stdout.count('this once') == 2
