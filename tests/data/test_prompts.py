"""Templates byte for byte, instructions as the reference reads them, and token ids from either kind
of file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import pickle
import re
import sys
import zlib

import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax.data import prompts

CORPUS = (
  'pick up the red cube and put it in the bowl',
  'open the top drawer of the cabinet',
  'fold the blue towel',
  "place the robot's gripper above the green block",
  'push the mug to the left, then wipe the table',
)
VOCAB = 45
TEXTS = (*CORPUS, 'put the cubes in the drawer', '  Fold\n the &amp;amp; towel ', 'Zzz! 9', '')


@pytest.mark.parametrize(
  ('text', 'digest'),
  [
    (prompts.DROID, '3be460f0ed043153'),
    (prompts.AGIBOT, '88515ac238a8d301'),
    (prompts.YAM, '2640c4bb358f2f73'),
    (prompts.HUMAN, '9ef3461f4d0d0d10'),
    (prompts.NEGATIVE, '38191719adbfd23b'),
    (prompts.DEFAULT_INSTRUCTION, '21ba88c701c219b0'),
  ],
)
def test_templates_byte_for_byte(text, digest):
  """SHA-256 of the released models' strings."""
  assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('Pick up the Cup', 'pick up the cup'),
    # A list, tuple or string as Python prints it: the reference evaluates it and takes the first.
    ("['Pick A', 'pick b']", 'pick a'),
    ("('Pick A',)", 'pick a'),
    ('"Pick A"', 'pick a'),
    ('7', '7'),
    ('[]', ''),
    # Bytes are told as what they hold; what is no text as it is written.
    ("b'Pick A'", 'pick a'),
    ("[b'Pick A', b'B']", 'pick a'),
    ('0x10', '0x10'),
    ('1e3', '1e3'),
    ('None', 'none'),
    # What is no such literal stays as it is.
    ('[unclosed', '[unclosed'),
    ("Don't {}", "don't {}"),
    # Marks of the reference's co-training, which are no words.
    ('<LAPA>Pick<DREAM> A<COTRAIN>', 'pick a'),
    ("<DREAM>['Pick A']", 'pick a'),
  ],
)
def test_an_instruction_is_parsed_as_it_was_stored(text, want):
  assert prompts.parse_instruction(text) == want


def test_every_brace_of_a_template_is_filled():
  assert prompts.fill('a {} b {}', "['Go {}']") == 'a go {} b go {}'
  assert (
    prompts.fill(prompts.TEMPLATES['mecka_hands'], 'Fold')
    == 'A single view video shows that a human fold'
  )


def test_text_is_cleaned_as_by_the_reference():
  pytest.importorskip('ftfy', reason="pip install -e '.[umt5]'")
  assert (
    prompts.clean(' the&nbsp;robot\u2019s\n\n&amp;lt;arm&amp;gt;  sch\u00c3\u00b6n ')
    == "the robot's <arm> schön"
  )


def test_word_tokenizer_is_the_transform():
  config = cfg.TextConfig(length=6, vocab=100)
  tokenize = pickle.loads(pickle.dumps(prompts.make_tokenizer(config)))
  np.testing.assert_array_equal(
    tokenize('Push the red Disc'), prompts.hash_words('Push the red Disc', 6, 100)
  )


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A unigram vocabulary of T5's form as spiece.model, and the same one as tokenizer.json."""
  sentencepiece = pytest.importorskip('sentencepiece', reason="pip install -e '.[umt5]'")
  tokenizers = pytest.importorskip('tokenizers', reason="pip install -e '.[umt5]'")
  pytest.importorskip('ftfy', reason="pip install -e '.[umt5]'")
  directory = tmp_path_factory.mktemp('tokenizer')
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS * 5),
    model_writer=model,
    vocab_size=VOCAB,
    model_type='unigram',
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    normalization_rule_name='identity',
    minloglevel=2,
  )
  (directory / 'spiece.model').write_bytes(model.getvalue())
  pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  vocabulary = [
    (pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())
  ]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', 1)]
  )
  # What a file says of lengths does not matter.
  tokenizer.enable_truncation(5)
  tokenizer.enable_padding(length=7)
  tokenizer.save(str(directory / 'tokenizer.json'))
  return directory, vocabulary


def config_of(files, name, **changes):
  config = cfg.TextConfig(kind='umt5', vocab=VOCAB, length=16, tokenizer=str(files[0] / name))
  return dataclasses.replace(config, **changes)


@pytest.mark.parametrize('name', ['spiece.model', 'tokenizer.json'])
def test_umt5_tokenizer(files, name):
  """Pieces, </s>, padding; long texts lose their end but not </s>; the same after pickling."""
  tokenize = prompts.make_tokenizer(config_of(files, name))
  tokenize = pickle.loads(pickle.dumps(tokenize))
  words = [piece for piece, _ in files[1]]
  ids_P = tokenize('pick up the red cube')
  assert ids_P.dtype == np.int32
  assert ids_P.shape == (16,)
  end = list(ids_P).index(prompts.END)
  assert ''.join(words[i] for i in ids_P[:end]) == '▁pick▁up▁the▁red▁cube'
  np.testing.assert_array_equal(ids_P[end + 1 :], 0)
  short_P = prompts.make_tokenizer(config_of(files, name, length=4))('pick up the red cube')
  np.testing.assert_array_equal(short_P, [*ids_P[:3], prompts.END])
  np.testing.assert_array_equal(tokenize(''), [prompts.END] + [prompts.PAD] * 15)


def test_either_file_gives_the_ids_of_transformers(files):
  transformers = pytest.importorskip('transformers', reason="pip install -e '.[torch]'")
  theirs = transformers.T5Tokenizer(vocab=files[1], extra_ids=0)
  ours = [
    prompts.make_tokenizer(config_of(files, name)) for name in ('spiece.model', 'tokenizer.json')
  ]
  for text in TEXTS:
    want_P = theirs(prompts.clean(text), padding='max_length', truncation=True, max_length=16)[
      'input_ids'
    ]
    for tokenize in ours:
      np.testing.assert_array_equal(tokenize(text), want_P, err_msg=text)


def test_wrong_files_raise(files, tmp_path):
  make = lambda **changes: prompts.make_tokenizer(config_of(files, 'spiece.model', **changes))
  with pytest.raises(ValueError, match="tokenizer='' is not a file; expected .* google/umt5-xxl"):
    make(tokenizer='')
  with pytest.raises(ValueError, match='is not a file'):
    make(tokenizer=str(files[0]))
  with pytest.raises(ValueError, match='has 45 tokens, more than model.text.vocab=44'):
    make(vocab=44)
  damaged = tmp_path / 'tokenizer.json'
  damaged.write_text('{"version": "1.0"')
  with pytest.raises(ValueError, match='cannot be read'):
    make(tokenizer=str(damaged))
  (tmp_path / 'spiece.model').write_bytes((files[0] / 'spiece.model').read_bytes()[:100])
  with pytest.raises(ValueError, match='cannot be read'):
    make(tokenizer=str(tmp_path / 'spiece.model'))
  (tmp_path / 'vocabulary.txt').write_text('a')
  with pytest.raises(ValueError, match='must end in .json or .model'):
    make(tokenizer=str(tmp_path / 'vocabulary.txt'))


def test_another_vocabulary_raises(tmp_path):
  tokenizers = pytest.importorskip('tokenizers', reason="pip install -e '.[umt5]'")
  path = tmp_path / 'tokenizer.json'
  tokenizers.Tokenizer(
    tokenizers.models.Unigram([('</s>', 0.0), ('<pad>', 0.0), ('a', -1.0)])
  ).save(str(path))
  with pytest.raises(ValueError, match=r'has <pad> and </s> as \(1, 0\) where T5 has \(0, 1\)'):
    prompts.make_tokenizer(cfg.TextConfig(kind='umt5', tokenizer=str(path)))


def test_vocabularies_are_compared_by_what_they_say(files, tmp_path):
  """Not by their kind of file, nor by their sizes."""
  either = [str(files[0] / name) for name in ('spiece.model', 'tokenizer.json')]
  assert prompts.find_difference(config_of(files, ''), *either) is None

  tokenizers = pytest.importorskip('tokenizers', reason="pip install -e '.[umt5]'")
  # Two pieces have changed their places.
  first, *middle, last = files[1][3:]
  pieces = [*files[1][:3], last, *middle, first]
  other = str(tmp_path / 'tokenizer.json')
  tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.save(other)
  for path in either:
    assert re.match(
      rf"token \d+ of '.*' is \d+ by {path}, \d+ by {other}\.",
      prompts.find_difference(config_of(files, ''), path, other),
    )


def test_missing_package_says_what_to_install(files, monkeypatch):
  monkeypatch.setitem(sys.modules, 'ftfy', None)
  with pytest.raises(ValueError, match=r"needs the package ftfy: pip install -e '\.\[umt5\]'"):
    prompts.make_tokenizer(config_of(files, 'spiece.model'))


def test_an_instruction_that_would_be_cut_is_refused():
  """Words of a template count; one that is too long by itself hides only what comes after the
  first mention.
  """
  count = prompts.make_counter(cfg.TextConfig(length=6))
  check = functools.partial(prompts.check_length, count=count, length=6)
  check('the robot {}', 'picks up a cup')
  check('no place for it, and seven words', 'picks up a cup')
  check('a video of {} and so on and on, in which it {}', 'grün 到达')
  with pytest.raises(ValueError, match=r"'picks up a red cup'... gives a prompt of 7 tokens"):
    check('the robot {}', 'picks up a red cup')
  with pytest.raises(ValueError, match='of 7 tokens, of which config.model.text.length=6 are read'):
    check('a video of {} and so on and on, in which it {}', 'a cup and mug')


def test_hash_words_by_hand():
  ids = prompts.hash_words("Push the RED block, 3 times; don't", 6, 100)
  # Six words fit; 0 is padding, so that 99 ids of 100 are left.
  words = ['push', 'the', 'red', 'block', '3', 'times']
  np.testing.assert_array_equal(ids, [1 + zlib.crc32(w.encode()) % 99 for w in words])
  np.testing.assert_array_equal(
    prompts.hash_words('-- go!', 4, 100), [1 + zlib.crc32(b'go') % 99, 0, 0, 0]
  )
  assert prompts.hash_words('', 3, 100).tolist() == [0, 0, 0]
  assert ids.dtype == np.int32
