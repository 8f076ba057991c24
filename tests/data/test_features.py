"""The format of stored features: what goes in comes out, and what does not fit is named."""

from __future__ import annotations

import dataclasses
import pickle

import ml_dtypes
import numpy as np
import pytest

from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.data import embodiments
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.data.features import describe
from wam_jax.data.features import lookup
from wam_jax.data.features import record_files

MODEL = cfg.ModelConfig(
  image_dim=6,
  image_tokens=5,
  image=cfg.ImageConfig('clip', size=8, patch=4, dim=6, dtype='bfloat16'),
  text=cfg.TextConfig('umt5', vocab=9, length=4, dim=3),
)
WEIGHTS = {'tokenizer': 'aaaa', 'text': 'bbbb', 'image': 'cccc'}
SHAPES = {'clean': (3, 2, 2, 1), 'image': (5, 6), 'condition': (3, 2, 2, 1)}
# Of the first 30 of 62 anchors every fourth; 54 numbers in a record are 12 + 30 + 12 of SHAPES.
SAMPLES_W = np.arange(0, 30, 4)
PROMPTS = [np.int32([5, 1, 0, 0]), np.int32([7, 8, 2, 1]), np.int32([1, 0, 0, 0])]
VALUES = np.random.default_rng(0).normal(size=(2 * len(SAMPLES_W), 54)).astype(ml_dtypes.bfloat16)
TEXTS = [
  np.random.default_rng(i).normal(size=(n, 3)).astype(ml_dtypes.bfloat16)
  for i, n in enumerate((2, 4, 1))
]
# Five records in a file make four files of windows.
STORING = record_files.Storing(4, variants=2, file_mib=5 * VALUES[0].nbytes / 2**20)


@pytest.fixture
def episodes(tmp_path) -> sources.Episodes:
  """Three synthetic episodes of their own directory, 62 anchors."""
  return sources.Episodes(synthetic.make_dataset(tmp_path, [24, 30, 32]), 'train', synthetic.CLOCK)


def make_description(episodes, model=MODEL, weights=WEIGHTS, transform='none'):
  return describe.make_description(
    episodes, windows.make_anchors(episodes), model, weights, transform
  )


def find(episodes, model=MODEL, weights=WEIGHTS, transform='none'):
  return lookup.find(episodes, windows.make_anchors(episodes), model, weights, transform)


def begin(episodes, storing=STORING, of=None):
  """(place, files by kind) of features that are not written yet."""
  of = of or make_description(episodes)
  place = describe.choose_directory(episodes, of)
  plan = record_files.make_plan(
    of,
    storing,
    shapes=SHAPES,
    samples_W=SAMPLES_W,
    prompt_ids=PROMPTS,
    text_dim=MODEL.text.dim,
  )
  record_files.begin(place, plan, SAMPLES_W, PROMPTS)
  return place, record_files.list_files(place, plan)


def store(episodes, **kwargs):
  place, files = begin(episodes, **kwargs)
  for kind, records in (('windows', VALUES), ('prompts', TEXTS)):
    for number in range(len(files[kind])):
      files[kind].write(number, (records[row].tobytes() for row in files[kind].rows(number)))
  assert record_files.finish(place) == []
  return place


def test_what_goes_in_comes_out(episodes):
  store(episodes)
  # Workers get it pickled.
  stored = pickle.loads(pickle.dumps(find(episodes)))
  assert [stored.find_anchor(w) for w in range(len(stored))] == [*range(0, 30, 4)]
  for window, variant, ids_P, text_PD in (
    (0, 0, PROMPTS[0], TEXTS[0]),
    (6, 1, PROMPTS[1], TEXTS[1]),
    (3, 1, PROMPTS[2], TEXTS[2]),
  ):
    got = types.Features(**stored.read(window, variant, ids_P))
    values = VALUES[2 * window + variant].astype(np.float32)
    np.testing.assert_array_equal(got.clean_BFHWC, values[:12].reshape(3, 2, 2, 1))
    np.testing.assert_array_equal(got.condition_BFHWC, values[12:24].reshape(3, 2, 2, 1))
    np.testing.assert_array_equal(got.image_BIC, values[24:].reshape(5, 6))
    np.testing.assert_array_equal(got.text_BPC[: len(text_PD)], text_PD.astype(np.float32))
    np.testing.assert_array_equal(got.text_BPC[len(text_PD) :], np.zeros((4 - len(text_PD), 3)))
    # As the encoders give them.
    assert got.clean_BFHWC.dtype == 'float32'
    assert got.text_BPC.dtype == 'float32'
    assert got.image_BIC.dtype == 'bfloat16'
    assert got.condition_BFHWC.dtype == 'float32'
  with pytest.raises(
    ValueError, match=r'no prompt with the token ids \[5, 2\]; it was made of other instructions'
  ):
    stored.read(0, 0, np.int32([5, 2, 0, 0]))


def test_files_are_whole_or_absent_and_of_the_size_asked_for(episodes):
  place, files = begin(episodes)
  assert [list(files['windows'].rows(n)) for n in range(4)] == [
    [0, 1, 2, 3, 4],
    [5, 6, 7, 8, 9],
    [10, 11, 12, 13, 14],
    [15],
  ]
  assert files['windows'].path(1).name == 'windows-00001-of-00004.array_record'
  assert [files['windows'].list_missing(i, 3) for i in range(3)] == [[0, 3], [1], [2]]

  def stop_midway():
    yield VALUES[0].tobytes()
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    files['windows'].write(0, stop_midway())
  with pytest.raises(
    ValueError, match='windows-00000-of-00004.array_record would hold 1 records where 5 belong'
  ):
    files['windows'].write(0, [VALUES[0].tobytes()])
  assert not list(place.glob('.*'))
  assert files['windows'].list_missing() == [0, 1, 2, 3]
  assert len(record_files.finish(place)) == 5
  with pytest.raises(
    ValueError,
    match=r'is not finished; 5 files are missing: windows-00000-of-00004.*Finish it with '
    r'the command that began it \(python -m data.encode .*config.data.features=off',
  ):
    find(episodes)
  (place / '.0a1b2c3d.windows-00000-of-00004.array_record').write_bytes(b'of a killed process')
  store(episodes)
  assert sorted(p.name for p in place.iterdir() if p.suffix != '.array_record') == [
    'index.npz',
    'manifest.json',
    'plan.json',
  ]


def test_a_full_disk_is_one_error(episodes, monkeypatch):
  # ArrayRecord's writer buffers, and tells of a full disk only at its end.
  class Full:
    def __init__(self, *_):
      pass

    def write(self, record):
      pass

    def close(self):
      raise RuntimeError('write() failed: No space left on device')

  place, files = begin(episodes)
  monkeypatch.setattr(record_files.array_record_module, 'ArrayRecordWriter', Full)
  with pytest.raises(
    ValueError, match='cannot be written .*No space left.*make room and run the same command again'
  ):
    files['prompts'].write(0, [text.tobytes() for text in TEXTS])
  assert not list(place.glob('*prompts*'))


def test_features_begun_otherwise_are_left_alone(episodes):
  store(episodes)
  with pytest.raises(
    ValueError,
    match=r'(?s)was begun otherwise:\n.*stored.anchor_stride: 4 stored, 8 here.*'
    r'stored.dtype: bfloat16 stored, float16 here.*or delete that directory',
  ):
    begin(episodes, dataclasses.replace(STORING, anchor_stride=8, dtype='float16'))
  with pytest.raises(ValueError, match='anchor_stride=0, variants=0: must be at least 1'):
    record_files.Storing(0, variants=0)
  with pytest.raises(ValueError, match=r"dtype='int8' must be one of \('bfloat16', 'float16'\)"):
    record_files.Storing(1, dtype='int8')


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(weights=WEIGHTS | {'tokenizer': 'dddd'}), 'weights.tokenizer: aaaa stored, dddd here'),
    (dict(weights=WEIGHTS | {'text': 'dddd'}), 'weights.text: bbbb stored, dddd here'),
    (dict(weights=WEIGHTS | {'image': 'dddd'}), 'weights.image: cccc stored, dddd here'),
    (dict(transform='random'), 'transform: none stored, random crop of 0.95 here'),
    (dict(model=dataclasses.replace(MODEL, max_chunks=3)), 'model.max_chunks: 2 stored, 3 here'),
    (
      dict(model=dataclasses.replace(MODEL, frames_per_chunk=2)),
      'model.frames_per_chunk: 1 stored, 2 here',
    ),
    (
      dict(model=dataclasses.replace(MODEL, image_condition=True)),
      'model.image_condition: False stored, True here',
    ),
    (
      dict(model=dataclasses.replace(MODEL, tokenizer=cfg.TokenizerConfig(resize=(8, 8)))),
      r'model.tokenizer.resize: \[\] stored, \[8, 8\] here',
    ),
    (
      dict(model=dataclasses.replace(MODEL, text=cfg.TextConfig('umt5', vocab=9, length=5, dim=3))),
      'model.text.length: 4 stored, 5 here',
    ),
    (
      dict(model=dataclasses.replace(MODEL, text=cfg.TextConfig())),
      'embodiment.language: .*model.text: .*umt5.* stored, None here',
    ),
    (
      dict(model=dataclasses.replace(MODEL, image=cfg.ImageConfig())),
      'model.image: .*clip.* stored, None here',
    ),
  ],
)
def test_whatever_differs_is_named(episodes, change, message):
  store(episodes)
  with pytest.raises(
    ValueError,
    match=rf'(?s)not what this run would compute:\n  {message}\nMake its own with python '
    r'-m data.encode --workdir=WORKDIR --dataset=.* or train on pixels with',
  ):
    find(episodes, **change)


def test_other_anchors_are_named(episodes):
  """As other step ranges, or failures taken or left, give them."""
  store(episodes)
  anchors = windows.make_anchors(episodes)
  later = dataclasses.replace(anchors, start_K=anchors.start_K + 1, total=59)
  with pytest.raises(
    ValueError, match=r'\n  anchors \(--ranges, --failures\): 62 .* stored, 59 .* here\n'
  ):
    lookup.find(episodes, later, MODEL, WEIGHTS, 'none')


@pytest.mark.parametrize(
  'part, value, message',
  [
    ('composite', (16, 28), r'embodiment.composite: \[16, 24\] stored, \[16, 28\] here'),
    ('views', synthetic.CLOCK.views[::-1], 'embodiment.views: .* stored, .* here'),
    ('chunk_s', 1.6, 'embodiment.chunk_s: 0.8 stored, 1.6 here'),
    ('resize', 'bilinear', 'embodiment.resize: area stored, bilinear here'),
    ('prompt', 'please {}', 'embodiment.prompt: {} stored, please {} here'),
  ],
)
def test_a_changed_robot_is_named(episodes, part, value, message):
  store(episodes)
  changed = sources.Episodes(
    str(episodes.path), 'train', dataclasses.replace(episodes.record, **{part: value})
  )
  with pytest.raises(ValueError, match=message):
    find(changed)
  if part == 'prompt':
    # Where nothing is embedded, the prompt does not matter.
    words = dataclasses.replace(MODEL, text=cfg.TextConfig())
    assert make_description(changed, words) == make_description(episodes, words)


def test_a_changed_dataset_or_slice_is_named(episodes, tmp_path):
  place = store(episodes)
  half = sources.Episodes(str(episodes.path), 'train[:2]', episodes.record)
  with pytest.raises(
    ValueError, match=r'(?s)anchors .*: 62 .*split: train stored, train\[:2\] here'
  ):
    find(half)
  other = sources.Episodes(
    synthetic.make_dataset(tmp_path / 'other', [24, 30, 32, 9]), 'train', episodes.record
  )
  place.rename(other.path / place.name)
  with pytest.raises(ValueError, match='dataset: .* stored, .* here'):
    find(other)


def test_features_of_another_robot_or_split_do_not_matter(episodes):
  assert find(episodes) is None
  store(episodes)
  assert find(sources.Episodes(str(episodes.path), 'val', episodes.record)) is None
  assert find(sources.Episodes(str(episodes.path), 'train', synthetic.VIDEO)) is None


def test_damage_is_found_before_training(episodes):
  place = store(episodes)
  shard = place / 'windows-00002-of-00004.array_record'
  content = shard.read_bytes()
  shard.write_bytes(content[:-9])
  with pytest.raises(
    ValueError, match='1 files of .* are missing or cut: windows-00002-of-00004.*what is missing'
  ):
    find(episodes)
  # Of the right length, but of zeros: what a disk leaves after a power cut. Found when it is read.
  shard.write_bytes(bytes(len(content)))
  stored = find(episodes)
  with pytest.raises(ValueError, match='Cannot read record 2 of .*windows-00002-of-00004'):
    stored.read(6, 0, PROMPTS[0])
  (place / 'manifest.json').write_text('{')
  with pytest.raises(
    ValueError, match='manifest.json is not JSON .*make it again: python -m data.encode'
  ):
    find(episodes)


def test_a_mixture_is_of_pixels_or_of_features(episodes, tmp_path):
  other = sources.Episodes(
    synthetic.make_dataset(tmp_path / 'other', [24]), 'train', synthetic.CLOCK
  )
  a, b = ((e, windows.make_anchors(e)) for e in (episodes, other))
  look = lambda required, **datasets: lookup.find_all(datasets, MODEL, WEIGHTS, 'none', required)
  assert look(False, a=a, b=b) == {}
  with pytest.raises(
    ValueError,
    match=r"\['b'\] of config.data.mixture have no .* but config.data.features='require'",
  ):
    look(True, b=b)
  store(episodes)
  assert list(look(False, a=a)) == list(look(True, a=a)) == ['a']
  with pytest.raises(
    ValueError,
    match=r"(?s)\['b'\] of config.data.mixture have no stored features, but a batch holds "
    r"pixels or stored features, not both, and \['a'\] have some.*:\n  python "
    f'-m data.encode --workdir=WORKDIR --dataset={other.path} .*features=off',
  ):
    look(False, a=a, b=b)


def test_the_command_is_the_datasets_own(episodes):
  half = sources.Episodes(str(episodes.path), 'train[:2]', embodiments.get('clock'))
  assert describe.make_command(half, 'random') == (
    f'python -m data.encode --workdir=WORKDIR --dataset={episodes.path} --embodiment=clock '
    "--split='train[:2]' --augmentations=4"
  )
  assert [
    describe.choose_transform(*flags)
    for flags in ((False, True), (False, False), (True, True), (True, False))
  ] == ['none', 'none', 'random', 'center']
