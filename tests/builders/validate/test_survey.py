"""A good dataset passes and has its card; damaged images and records, and missing words, are found
and named.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from data.validate import card
from data.validate import encoded
from data.validate import findings as findings_lib
from data.validate import numeric
from data.validate import survey
from tests.builders.validate import spoilt
from tests.data import synthetic
from wam_jax.data import sources


def test_good_dataset_passes_and_its_card_is_right(good_path):
  findings, result = spoilt.validate(good_path)
  assert not findings.count('fail'), list(findings.lines())
  assert not findings.count('warn'), list(findings.lines())
  seen = result.card
  assert (seen['episodes'], seen['readable'], seen['steps'], seen['decoded']) == (6, 6, 360, 6)
  # 360 steps of 0.1 s.
  assert seen['hours'] == pytest.approx(36 / 3600)
  # A chunk of 8 steps, and its last frame, must fit behind an anchor.
  assert seen['anchors'] == 6 * (60 - 8)
  assert seen['rates'] == {
    'control_hz': 10,
    'video_fps': 2.5,
    'chunk_s': 0.8,
    'steps_per_chunk': 8,
    'frames_per_chunk': 2,
    'timestamps_hz': pytest.approx(10, rel=1e-4),
  }
  assert seen['instructions'] == {
    'distinct': 1,
    'spans': 6,
    'most_frequent': [('go there', 6)],
    'blank_steps': {'language_instruction': 0},
  }
  for view in seen['views'].values():
    assert abs(view['late_steps']) <= 1
    assert view['motion_correlation'] > 0.6

  assert_numbers_of_y(seen['dimensions'][1], sources.Episodes(good_path, 'train', spoilt.ROBOT))
  assert [r['name'] for r in seen['dimensions'] if r['relative']] == ['action[0]', 'action[1]']

  text = '\n'.join(card.lines(seen))
  assert '6; 60 to 60 steps' in text
  assert '6 x  go there' in text
  assert 'action action[1] - state  m' in text
  # It can be written: no NumPy scalar is left in it.
  json.dumps(seen)


def assert_numbers_of_y(row, episodes):
  """The card's row of the second state dimension holds what is computed of all rows in one go."""
  assert row['part'] == 'state'
  assert row['name'] == 'proprio[1]'
  assert row['unit'] == 'm'
  assert row['relative'] is False
  y_T = np.concatenate([episodes.numeric(i)[0][:, 1] for i in range(6)])
  want = {
    'min': y_T.min(),
    'q01': np.quantile(y_T, 0.01),
    'mean': y_T.mean(),
    'q99': np.quantile(y_T, 0.99),
    'max': y_T.max(),
    'std': y_T.std(),
  }
  assert {key: row[key] for key in want} == pytest.approx(want, rel=1e-4)


def test_truncated_and_foreign_images_are_named_though_not_decoded(tmp_path):
  def edit(episodes):
    episodes[1]['top'][7] = spoilt.jpeg(episodes[1]['top'][7])[:300]
    episodes[2]['wrist'][3] = b'BM no jpeg'

  # Only one episode is decoded; of the others the first and last bytes are looked at.
  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit), decoded=1)
  spoilt.expect(
    found, 'image', "image 'top' of step 7 of record 1 of", 'is a truncated JPEG (300 bytes)'
  )
  spoilt.expect(
    found,
    'image',
    "Image 'wrist' of step 3 of record 2 of",
    'is not a readable JPEG or PNG (10 bytes); rebuild the dataset. To leave the episode out: ',
    'It begins with 42 4d 20 6e.',
  )
  assert len(found) == 2


def test_images_that_do_not_decode_are_named(tmp_path):
  def edit(episodes):
    # Both begin and end as a JPEG does: one holds nothing, one is of another size.
    episodes[0]['top'][5] = encoded.JPEG + bytes(100) + encoded.JPEG_END
    episodes[3]['wrist'][9] = spoilt.jpeg(np.zeros((16, 32, 3), np.uint8))

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found, 'image', "Image 'top' of step 5 of record 0 of", 'is not a readable JPEG or PNG'
  )
  spoilt.expect(found, 'image', "Image 'wrist' of step 9 of record 3 of", '(16, 32, 3)')


def test_truncated_shard_names_all_lost_records(good_path, tmp_path):
  path = shutil.copytree(good_path, tmp_path / 'copy')
  shard = next(path.glob('*train.*record-*'))
  shard.write_bytes(shard.read_bytes()[:-70000])
  findings, result = spoilt.validate(path)
  spoilt.expect(
    list(findings.messages('fail')),
    'record',
    *(
      f'Cannot read record {i} of {shard}: the shard is missing, truncated or corrupt'
      for i in range(spoilt.EPISODES)
    ),
  )
  assert findings.count('fail') == spoilt.EPISODES
  assert result is None


def test_images_and_rows_of_different_number(good_path, tmp_path):
  path = shutil.copytree(good_path, tmp_path / 'copy')
  shard = next(path.glob('*train.*record-*'))
  with array_record_data_source.ArrayRecordDataSource(str(shard)) as reader:
    records = [tf_example_pb2.Example.FromString(reader[i]) for i in range(spoilt.EPISODES)]
  # One image and one number fewer than the steps need.
  records[1].features.feature['steps/observation/wrist'].bytes_list.value.pop()
  records[4].features.feature['steps/action'].float_list.value.pop()
  shard.unlink()
  writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1')
  for record in records:
    writer.write(record.SerializeToString())
  writer.close()
  findings, result = spoilt.validate(path)
  spoilt.expect(
    list(findings.messages('fail')),
    'record',
    'record 1 of',
    "59 values of 'observation/wrist' for its 60 steps",
    'record 4 of',
  )
  assert findings.count('fail') == 2
  assert result.card['readable'] == 4
  assert result.card['anchors'] is None
  text = '\n'.join(card.lines(result.card))
  assert '6, 2 of them unreadable' in text
  assert 'not counted: some records cannot be read' in text


def test_nan_names_record_and_step(tmp_path):
  def edit(episodes):
    episodes[2]['proprio'][5, 1] = np.nan
    episodes[4]['action'][9, 0] = np.inf

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'record',
    'record 2 of',
    "NaN or infinity in 'observation/proprio' at step 5",
    "NaN or infinity in 'action' at step 9",
  )


def test_steps_without_words_are_found(tmp_path):
  def edit(episodes):
    episodes[3]['text'] = ['go there'] * 20 + ['  '] * 40

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found, 'language', 'steps 20 to 59 of record 3 of', 'no text under language_instruction'
  )


def test_episodes_that_training_leaves_out_need_no_language(tmp_path):
  class Named(synthetic.SyntheticRlds):
    def _generate_examples(self, episodes):
      yield from (
        (i, {'steps': steps, 'file_path': path}) for i, (path, steps) in enumerate(episodes)
      )

  steps = [
    {
      'observation': {'image': io.BytesIO(spoilt.jpeg(np.full((8, 8, 3), 9 * t, np.uint8)))},
      'language_instruction': '',
    }
    for t in range(20)
  ]
  features = tfds.features.FeaturesDict(
    {
      'steps': tfds.features.Dataset(
        {
          'observation': {'image': tfds.features.Image(shape=(8, 8, 3), encoding_format='jpeg')},
          'language_instruction': tfds.features.Text(),
        }
      ),
      'file_path': tfds.features.Text(),
    }
  )
  made = Named(
    {'train': [('failure/1', steps), ('success/2', steps)]},
    features,
    data_dir=str(tmp_path),
    file_format='array_record',
  )
  made.download_and_prepare()
  record = dataclasses.replace(
    spoilt.ROBOT,
    views=(spoilt.View('image', 0, 0, 32, 48),),
    state=(),
    action=(),
    episode_key=('file_path',),
    success='success',
  )
  found = [
    message for kind, message in spoilt.failures(made.data_path, record) if kind == 'language'
  ]
  assert len(found) == 1
  assert 'record 1 of' in found[0]


def test_more_than_ten_of_a_kind_are_counted(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['text'] = ['a', '', 'b', '', 'c', ''] + ['d'] * (spoilt.STEPS - 6)

  # Three stretches without words in each of six episodes.
  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  assert findings.count('fail') == 18
  assert [m for _, m in findings.messages('fail')][10:] == ['... and 8 more like these']


def encode(image: np.ndarray, suffix='.png') -> bytes:
  return cv2.imencode(suffix, image)[1].tobytes()


def test_every_image_has_the_promised_size_and_colours(tmp_path):
  noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
  wrong = {
    3: (encode(noise[..., 0]), 'decodes to uint8 (32, 32)'),
    4: (encode(noise[..., 0], '.jpg'), 'decodes to uint8 (32, 32)'),
    5: (encode(np.dstack([noise, noise[..., :1]])), 'decodes to uint8 (32, 32, 4)'),
    6: (encode(noise.astype(np.uint16) << 8), 'decodes to uint16 (32, 32, 3)'),
    7: (encode(noise[:16], '.jpg'), 'has shape (16, 32, 3); features.json says (32, 32, 3)'),
    8: (encode(noise, '.webp')[:-9], 'is a truncated WebP'),
    9: (b'', 'is not a readable JPEG or PNG (0 bytes)'),
  }

  def edit(episodes):
    # What training reads: another format, and a JPEG with a thumbnail's place before its frame.
    episodes[0]['top'][1] = encode(noise, '.webp')
    jpeg = encode(noise, '.jpg')
    episodes[0]['top'][2] = jpeg[:2] + b'\xff\xe1\x00\x08Exif\x00\x00' + jpeg[2:]
    for step, (image, _) in wrong.items():
      episodes[1]['wrist'][step] = image

  # None of these is decoded for a look: the header is enough to be sent to the decoder.
  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit), decoded=1)
  for step, (_, says) in wrong.items():
    mine = [message for _, message in found if f"'wrist' of step {step} of record 1 of" in message]
    assert len(mine) == 1
    assert says in mine[0]
  assert {kind for kind, _ in found} == {'image'}
  assert len(found) == len(wrong)


def test_steps_are_those_of_the_episode_where_some_are_left_out(tmp_path):
  def edit(episodes):
    episodes[3]['proprio'][20, 1] = 1e6

  path = spoilt.make_dataset(tmp_path, edit)
  left_out = {'train': [{'episode': 3, 'steps': [[4, 10]]}]}
  (pathlib.Path(path) / 'exclusions.json').write_text(json.dumps(left_out))
  found = spoilt.failures(path)
  assert any(kind == 'exploding' and 'is 1e+06 at step 20 of record 3' in m for kind, m in found)


def test_records_are_read_once(tmp_path, monkeypatch):
  path = spoilt.make_dataset(tmp_path)
  episodes = sources.Episodes(path, 'train', spoilt.ROBOT)
  findings = findings_lib.Findings()
  seen, outline = [], sources.Episodes.outline
  monkeypatch.setattr(
    sources.Episodes, 'outline', lambda self, i: seen.append(i) or outline(self, i)
  )
  kept = survey.read(episodes, [], findings)
  # The grid of `duplicates` is made of some of them before.
  once = list(range(len(episodes)))
  assert seen == [*once, *once]
  assert numeric.count_anchors(kept, episodes, findings)
  assert seen == [*once, *once]
