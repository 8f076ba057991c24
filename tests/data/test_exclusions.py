"""What is left out once is left out everywhere: windows, statistics, batches, and what is said."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from tests.data import published
from tests.data import synthetic
from wam_jax import start
from wam_jax.data import choice
from wam_jax.data import embodiments
from wam_jax.data import exclusions
from wam_jax.data import pipeline
from wam_jax.data import robot as robot_lib
from wam_jax.data import roster
from wam_jax.data import scan
from wam_jax.data import sources
from wam_jax.data import statistics
from wam_jax.data import windows

CLOCK = synthetic.CLOCK


def leave_out(path: str, *entries, split: str = 'train') -> None:
  (pathlib.Path(path) / exclusions.FILE).write_text(json.dumps({split: entries}))


def open_split(path: str, split: str = 'train', **wanted) -> sources.Episodes:
  return sources.Episodes(path, split, CLOCK, choice=choice.Choice(**wanted))


def list_seconds(episodes: sources.Episodes) -> list[float]:
  """The state that tells an episode, of each."""
  return [episodes[i].state_TX[0, 1] for i in range(len(episodes))]


def test_an_excluded_episode_is_not_there(tmp_path):
  path = synthetic.make_sharded(tmp_path, 3)  # Six episodes, two a shard.
  whole = open_split(path)
  leave_out(path, {'episode': 2, 'why': 'the robot was pushed'}, {'episode': 5})
  episodes = open_split(path)
  assert list_seconds(episodes) == [0, 100, 300, 400]
  assert [episodes.find_place(i) for i in range(4)] == [('train', n) for n in (0, 1, 3, 4)]
  assert episodes.where(2).startswith('record 1 of ')
  # Which episodes are trained on, as overlaps are told by.
  fingerprints = [fingerprint for fingerprint, _, _ in whole.parts]
  taken = [(0, 0, 2), (1, 1, 1), (2, 0, 1)]
  assert episodes.parts == tuple((fingerprints[i], first, n) for i, first, n in taken)
  # What is derived from the others is not taken for theirs.
  assert episodes.fingerprint != whole.fingerprint
  # A slice is of the same episodes as before.
  assert list_seconds(open_split(path, 'train[50%:]')) == [300, 400]
  assert len(open_split(path, 'val')) == 3
  assert open_split(path, 'val').fingerprint

  anchors = windows.make_anchors(episodes)
  assert anchors.left_out == {'excluded': 2}
  assert windows.describe_left_out(episodes, anchors).endswith(
    '4 episodes taken; left out: 2 excluded'
  )


def test_statistics_and_batches_are_of_the_others(tmp_path):
  """As of a dataset that never had them."""

  def spoil(episodes):
    for step in episodes[1]:
      step['observation']['top'].seek(0)
      step['observation']['top'].write(b'broken')
      step['observation']['proprio'] = np.float32([np.nan] * 3)

  path = synthetic.make_dataset(tmp_path / 'a', [16, 30, 20], spoil)
  leave_out(path, {'episode': 1})
  config = synthetic.make_config({'clock': (path, 'clock', 1.0)})
  data = pipeline.Data.open(config)
  found = data.robots['clock'].statistics
  assert found.action.max[0] == 18  # Of 0 ... 19, the last one is in no chunk.
  assert found.steps == 36
  assert any('left out: 1 excluded' in note for note in data.notes)
  batches = data.train_batches()
  for _ in range(4):
    assert np.isfinite(next(batches).proprio_BQX).all()
  batches.close()


def test_excluded_steps_are_in_no_window(tmp_path):
  def spoil(episodes):
    episodes[0][20]['observation']['proprio'] = np.float32([np.nan] * 3)

  path = synthetic.make_dataset(tmp_path, [40, 12], spoil)
  with pytest.raises(ValueError, match='NaN or infinity') as error:
    open_split(path)[0]
  assert "NaN or infinity in 'observation/proprio' at step 20, column 0" in str(error.value)
  assert f'python -m data.exclude --dataset={path} --split=train --episodes=0' in str(error.value)

  leave_out(path, {'episode': 0, 'steps': [[20, 22]]})
  episodes = open_split(path)
  anchors = windows.make_anchors(episodes)
  seen = set()
  for i in range(len(anchors)):
    number, step, stop = anchors[i]
    window = windows.make_window(CLOCK, 3, step, stop)
    if number == 0:
      seen |= set(window.frame_steps_R.tolist()) | set(window.action_steps_QS.ravel().tolist())
  assert seen == {*range(20), *range(22, 40)}
  found = statistics.load_or_compute(episodes)
  assert np.isfinite(found.state.mean).all()
  assert found.steps == 38 + 12


def test_nan_in_a_column_that_nobody_takes(tmp_path):
  def spoil(episodes):
    episodes[0][5]['observation']['proprio'] = np.float32([np.nan, 1, 2])

  path = synthetic.make_dataset(tmp_path, [12, 12], spoil)
  slices = (synthetic.Slice('proprio', 1, 3, 's'),)
  others = synthetic.dataclasses.replace(CLOCK, state=slices)
  assert sources.Episodes(path, 'train', others)[0].state_TX.shape == (12, 2)


def test_empty_episodes_are_counted(tmp_path):
  path = synthetic.make_dataset(tmp_path, [12, 0, 12])
  episodes = open_split(path)
  assert len(episodes) == 3
  assert episodes[1].length == 0
  assert windows.make_anchors(episodes).left_out == {'empty': 1}
  assert statistics.load_or_compute(episodes).steps == 24

  assert scan.load_spans(episodes)[:, 0].tolist() == [0, 2]


def test_ranges_leave_an_episode_out_unread(tmp_path, monkeypatch):
  """One that no range names may be anything: only its name is read."""
  path = published.write(tmp_path, 'droid', [60, 60])
  episodes = sources.Episodes(path, 'train', embodiments.get('droid'))
  ranges = tmp_path / 'ranges.json'
  ranges.write_text(json.dumps({published.episode_name(1): [[0, 60]]}))
  chosen = choice.Choice(ranges=str(ranges))
  kept = sources.Episodes(path, 'train', embodiments.get('droid'), choice=chosen)
  found = statistics.load_or_compute(kept)
  assert found.steps == 60
  # Of another choice, and therefore in a file of its own.
  assert statistics.find(kept) != statistics.find(episodes)
  assert statistics.load_or_compute(episodes).steps == 120
  # DROID's ranges are a large file, of no use where what they choose is known.
  monkeypatch.setattr(choice, '_read_ranges', lambda file: pytest.fail(f'{file} is read'))
  assert statistics.load_or_compute(kept).steps == 60
  assert [type(finding) for finding in windows.list_findings(kept)] == [scan.Spans, scan.Names]


def test_steps_without_an_instruction_by_choice(tmp_path):
  def hush(episodes):
    for t, step in enumerate(episodes[0]):
      step['language_instruction'] = '' if t < 20 else step['language_instruction']
    for step in episodes[2]:
      step['language_instruction'] = ' '

  path = synthetic.make_dataset(tmp_path, [40, 20, 20], hush)
  assert windows.make_anchors(open_split(path)).left_out == {}
  anchors = windows.make_anchors(open_split(path, labeled=True))
  assert anchors.left_out == {'without an instruction': 1}
  assert anchors[0][:2] == (0, 20)
  assert statistics.load_or_compute(open_split(path, labeled=True)).steps == 40


def test_statistics_are_of_their_split(tmp_path):
  """Slices and sums of splits have their own, and none takes the place of another's."""
  path = synthetic.make_dataset(tmp_path, [12, 20, 40])
  splits = ('train', 'val', 'train[:1]', 'train[1:]', 'train[:1]+val')
  expected = (72, 32, 12, 60, 44)
  for _ in range(2):
    found = [statistics.load_or_compute(open_split(path, split)).steps for split in splits]
    assert tuple(found) == expected
  files = {statistics.find(open_split(path, split)).name for split in splits}
  assert len(files) == len(splits)
  config = synthetic.make_config({'clock': (path, 'clock', 1.0)})
  part = synthetic.dataclasses.replace(config.data.mixture['clock'], split='train[:1]+val')
  data = synthetic.dataclasses.replace(config.data, mixture={'clock': part})
  opened = pipeline.Data.open(synthetic.dataclasses.replace(config, data=data))
  assert opened.robots['clock'].statistics.steps == 44


def test_shards_that_are_not_there(tmp_path):
  path = synthetic.make_sharded(tmp_path, 4)
  gone = sorted(pathlib.Path(path).glob('*train*'))[2]
  gone.unlink()
  with pytest.raises(ValueError, match='are missing') as error:
    open_split(path)
  assert gone.name in str(error.value)
  assert f'data.exclude --dataset={path} --split=train --shards=missing' in str(error.value)
  leave_out(path, {'shard': gone.name})
  episodes = open_split(path)
  assert list_seconds(episodes) == [0, 100, 200, 300, 600, 700]
  assert [episodes.find_place(i)[1] for i in range(6)] == [0, 1, 2, 3, 6, 7]
  assert windows.make_anchors(episodes).left_out == {'shards': 1}


def test_another_file_and_none(tmp_path):
  path = synthetic.make_dataset(tmp_path, [12, 12, 12])
  leave_out(path, {'episode': 0})
  other = tmp_path / 'other.json'
  other.write_text(json.dumps({'train': [{'episode': 1}, {'episode': 2}]}))
  config = synthetic.make_config({'clock': (path, 'clock', 1.0)}, exclude={'clock': str(other)})
  anchors = pipeline.Data.open(config).open_mixture()[0].anchors
  assert len(anchors) == 4
  everything = sources.Dataset(path, exclude=sources.NOTHING)
  assert len(everything.open('train', CLOCK)) == 3
  assert len(open_split(path)) == 2


@pytest.mark.parametrize(
  'content, message',
  [
    ('{"train": [', 'exclusions.json is not JSON'),
    ('[3]', 'must map names of splits to lists'),
    ('{"train": [{"episode": "3"}]}', r"must list objects .* It has train: {'episode': '3'}"),
    ('{"train": [{"episode": 1, "steps": []}]}', 'must list objects'),
    (
      '{"train": [{"episode": 1, "steps": [[9, 4]]}]}',
      r'must list objects .* It has train: .*9, 4',
    ),
    ('{"train": [{"episodes": 1}]}', 'must list objects'),
    ('{"test": [{"episode": 1}]}', "is not of this dataset: there is no split 'test', but "),
    ('{"train": [{"episode": 7}]}', r'train has 2 episodes, not \[7\]'),
    ('{"train": [{"shard": "x"}]}', r"train has no shards \['x'\]"),
    ('{"train": [{"episode": 0}, {"episode": 1}]}', "leaves out all episodes of split 'train'"),
  ],
)
def test_wrong_files(tmp_path, content, message):
  path = synthetic.make_dataset(tmp_path, [12, 12])
  (pathlib.Path(path) / exclusions.FILE).write_text(content)
  with pytest.raises(ValueError, match=message):
    open_split(path)
  with pytest.raises(ValueError, match='There is no file of exclusions .*nowhere.json'):
    sources.Dataset(path, exclude=str(tmp_path / 'nowhere.json'))


def test_numbers_as_text():
  parse = lambda text, count=None: exclusions.parse_numbers(text, '--episodes', count)
  assert parse('3,10:12') == [3, 10, 11]
  assert parse('-1,:2,5:', 7) == [0, 1, 5, 6]
  for text in ('', 'a', '3:', '5:5', '1.5'):
    with pytest.raises(ValueError, match=f'--episodes={text}'):
      parse(text)
  with pytest.raises(ValueError, match=r'means \[9\]; there are 0 to 6'):
    parse('9', 7)


def go_on(config, before) -> tuple[pipeline.Data, dict]:
  """The data of a run that goes on after a checkpoint with these metadata; compared with them."""
  known = roster.Known(robot_lib.from_metadata(before), 'the run', True, before.get('episodes', {}))
  data = pipeline.Data.open(config, known=known)
  now = json.loads(json.dumps(data.metadata))
  start._check_same_data(before, now, pathlib.Path('the run'))
  return data, now


def begin(config) -> dict:
  return json.loads(json.dumps(pipeline.Data.open(config).metadata))


def test_a_run_goes_on_without_an_episode(tmp_path):
  path = synthetic.make_dataset(tmp_path, [20, 20, 40])
  config = synthetic.make_config({'clock': (path, 'clock', 1.0)})
  before = begin(config)
  leave_out(path, {'episode': 2})
  data, now = go_on(config, before)
  assert any('what is left out has changed since the run was last saved' in n for n in data.notes)
  # The numbers mean to the model what they meant.
  assert data.robots['clock'].statistics.steps == 80
  assert now['episodes']['clock']['excluded']
  # Another episode of the same length gives the same table of windows.
  leave_out(path, {'episode': 0})
  other, _ = go_on(config, now)
  assert any('what is left out has changed' in note for note in other.notes)


def test_a_run_does_not_go_on_with_other_shards(tmp_path):
  path = synthetic.make_dataset(tmp_path / 'a', [20, 20, 40])
  before = begin(synthetic.make_config({'clock': (path, 'clock', 1.0)}))
  other = synthetic.make_dataset(tmp_path / 'b', [20, 21, 40])
  leave_out(other, {'episode': 2})
  with pytest.raises(ValueError, match='The dataset has changed since .*: embodiments, windows'):
    go_on(synthetic.make_config({'clock': (other, 'clock', 1.0)}), before)


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
  """With its own statistics, which counted every step."""
  path = synthetic.make_dataset(tmp_path, [20, 20])
  config = synthetic.make_config({'clock': (path, 'clock', 1.0)})
  before = begin(config)
  del before['episodes']
  robot = before['embodiments']['clock']
  del robot['statistics']['rows']
  robot['statistics']['action']['q99'] = [19.0, 19.5]
  for part in ('state', 'action'):
    for each in robot['record'][part]:
      del each['wrap']
  data, _ = go_on(config, before)
  assert data.robots['clock'].statistics.action.q99.tolist() == [19.0, 19.5]
  assert any('goes on with the statistics of its checkpoint' in note for note in data.notes)
