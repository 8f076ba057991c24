"""What the text encoder is told: the released models' templates, instructions put into them, and
text to token ids.

The templates are inputs of trained weights and must match byte for byte; `{}` stands for the
instruction.
Source: DreamZero `transform/dreamzero_cotrain.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import html
import importlib
import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from wam_jax import config as cfg
from wam_jax import pointers

DROID = (
  'A multi-view video shows that a robot {} The video is split into three views: The top view '
  "shows the camera view from the robot's wrist, the bottom-left view shows the camera view "
  'from the left exterior camera, and the bottom-right view shows the camera view from the '
  'right exterior camera. During training, one of the two bottom exterior views may be a black '
  'screen (dropped view). The robot {}'
)
AGIBOT = (
  'A multi-view video shows that a robot {} The video is split into four views: The top-left '
  "view shows the camera view from the robot's head, the top-right view shows the camera view "
  'from the right hand, the bottom-left view shows the camera view from the left hand, and the '
  'bottom-right view is a black screen (inactive view). The robot {}'
)
YAM = (
  'A multi-view video shows that a robot {} The video is split into four views: The top-left '
  'view shows the top camera, the top-right view shows the right camera, the bottom-left view '
  'shows the left camera, and the bottom-right view is a black screen. The robot {}'
)
HUMAN = 'A single view video shows that a human {}'
NEGATIVE = (
  'Vibrant colors, overexposed, static, blurry details, text, subtitles, style, artwork, '
  'painting, image, still, grayscale, dull, worst quality, low quality, JPEG artifacts, ugly, '
  'mutilated, extra fingers, bad hands, bad face, deformed, disfigured, mutated limbs, fused '
  'fingers, stagnant image, cluttered background, three legs, many people in the background, '
  'walking backwards.'
)
DEFAULT_INSTRUCTION = 'Perform the default behavior.'

# By the released models' embodiment tag.
TEMPLATES = {
  'oxe_droid': DROID,
  'agibot': AGIBOT,
  'xdof': AGIBOT,
  'yam': YAM,
  'gr1_unified': HUMAN,
  'mecka_hands': HUMAN,
}
TAGS = ('<LAPA>', '<DREAM>', '<COTRAIN>')
_LITERAL = re.compile(r"""\s*(?:[\[(]|[bB]?['"])""")
PAD, END = 0, 1  # Ids of <pad> and </s>.


def fill(template: str, text: str) -> str:
  """`template` with the instruction in a dataset's language field at every `{}`."""
  return template.replace('{}', parse_instruction(text))


def parse_instruction(text: str) -> str:
  """The lower-cased instruction: without tags, and of a list, tuple or string as Python prints it
  its value or its first one.

  An empty list is an empty instruction (the reference stops there), bytes are the text that they
  hold (there, their print), and what begins with none of these marks is not evaluated: a number is
  told as it is written.
  """
  for tag in TAGS:
    text = text.replace(tag, '')
  value = read_literal(text)
  if isinstance(value, (list, tuple)):
    value = value[0] if value else ''
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  return str(value).lower()


def read_literal(text: str) -> Any:
  """What Python has printed a list, tuple, string or bytes as; any other text as it is."""
  if not _LITERAL.match(text):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text


def decode_codes(codes_TN: np.ndarray) -> list[bytes]:
  """Texts that are stored as numbers, a row each, encoded: bytes of UTF-8 where all are below 256,
  otherwise characters; they end before the first 0, or what is below it.

  Raises:
    ValueError: a number is no character.
  """
  decoded: dict[bytes, bytes] = {}  # An episode repeats its rows.
  for row in codes_TN:
    if row.tobytes() not in decoded:
      decoded[row.tobytes()] = _decode_row(row)
  return [decoded[row.tobytes()] for row in codes_TN]


def _decode_row(codes_N: np.ndarray) -> bytes:
  ends = np.flatnonzero(codes_N <= 0)
  text_N = codes_N[: ends[0]] if ends.size else codes_N
  if not text_N.size or text_N.max() < 256:
    return bytes(text_N.tolist())
  try:
    return ''.join(map(chr, text_N.tolist())).encode()
  except (ValueError, OverflowError) as e:
    raise ValueError(f'{text_N.max()} is no character, so that these numbers are no text.') from e


def clean(text: str) -> str:
  """`text` with broken Unicode mended, HTML entities resolved twice and every run of white space as
  one space.
  """
  text = html.unescape(html.unescape(_import('ftfy').fix_text(text)))
  return re.sub(r'\s+', ' ', text).strip()


def make_tokenizer(config: cfg.TextConfig) -> Callable[[str], np.ndarray]:
  """Text to [length] int32 ids, 0 after the text; can be pickled.

  Raises:
    ValueError: the file of `config.tokenizer` is missing, unreadable, no T5 vocabulary, or larger
      than `config.vocab`.
  """
  if config.kind == 'word':
    return functools.partial(hash_words, length=config.length, vocab=config.vocab)

  # What is missing is said here, and not by a worker at its first sample.
  size = _load(config.tokenizer).size
  if size > config.vocab:
    raise ValueError(
      f'model.text.tokenizer={config.tokenizer!r} has {size} tokens, more than model.text.vocab='
      f'{config.vocab}; name the vocabulary the text encoder was trained with.'
    )
  _import('ftfy')
  return functools.partial(_tokenize, path=config.tokenizer, length=config.length)


def make_counter(config: cfg.TextConfig) -> Callable[[str], int]:
  """Text to the number of its tokens, however many are read.

  Raises:
    ValueError: as `make_tokenizer`.
  """
  make_tokenizer(config)  # Its checks.
  if config.kind == 'word':
    return lambda text: len(_find_words(text))
  encode = _load(config.tokenizer).encode
  return lambda text: len(encode(clean(text))) + 1  # The mark of its end.


def check_length(template: str, instruction: str, count: Callable[[str], int], length: int) -> None:
  """Raises ValueError where a text encoder would not read all of an instruction.

  A template that is itself longer than what is read never was read to its end; then the first
  mention of the instruction counts.

  Args:
    count: of `make_counter`.
    length: tokens that are read.
  """
  prompt = fill(template, instruction)
  # No token is shorter than a byte.
  if '{}' not in template or len(prompt.encode()) < length:
    return
  if count(fill(template, '')) > length:
    prompt = fill(template.partition('{}')[0] + '{}', instruction)
  tokens = count(prompt)
  if tokens > length:
    raise ValueError(
      f'The instruction {instruction[:60]!r}... gives a prompt of {tokens} tokens, of which '
      f'config.model.text.length={length} are read: say it in fewer words, or train with a larger '
      'length.'
    )


def _find_words(text: str) -> list[str]:
  """Runs of letters and digits."""
  return re.findall(r'[^\W_]+', text.lower())


# Common and rare words, digits and signs: two vocabularies differ in some of them.
_PROBES = (
  'Pick up the red mug, then put it into the drawer (left side) & close it.',
  'The video shows a bimanual manipulator unfolding 3 crumpled T-shirts; 0.25x speed!',
  'Unscrew the thermos, pour ~40 ml of espresso, wipe the countertop.',
  DROID,
  NEGATIVE,
)


def find_difference(config: cfg.TextConfig, one: str, other: str) -> str | None:
  """Where two vocabulary files, of any kind, give a text different ids; None if nothing is found.

  Raises:
    ValueError: as `make_tokenizer`.
  """
  contents = [epath.Path(path).expanduser().read_bytes() for path in (one, other)]
  if contents[0] == contents[1]:
    return None
  by_file = [make_tokenizer(dataclasses.replace(config, tokenizer=path)) for path in (one, other)]
  for text in _PROBES:
    ids, other_ids = (tokenize(text) for tokenize in by_file)
    if not np.array_equal(ids, other_ids):
      first = int(np.argmax(ids != other_ids))
      return (
        f'token {first} of {text[:40]!r} is {ids[first]} by {one}, {other_ids[first]} by {other}.'
      )
  return None


@functools.lru_cache(maxsize=65536)
def hash_words(text: str, length: int, vocab: int) -> np.ndarray:
  """[length] int32 ids: 1 + crc32(word) % (vocab - 1) for each lower-cased word, 0 padding,
  truncated. Read-only.

  Words are runs of letters and digits. The hash is the same on every machine and in every Python.
  """
  words = _find_words(text)[:length]
  ids_P = np.zeros(length, np.int32)
  ids_P[: len(words)] = [1 + zlib.crc32(word.encode()) % (vocab - 1) for word in words]
  ids_P.flags.writeable = False  # Every caller with the same text holds this array.
  return ids_P


def _tokenize(text: str, path: str, length: int) -> np.ndarray:
  """[length] int32 ids of the T5 vocabulary at `path`; a text that is too long keeps its end."""
  ids = _load(path).encode(clean(text))[: length - 1]
  ids_P = np.full(length, PAD, np.int32)
  ids_P[: len(ids) + 1] = [*ids, END]
  return ids_P


class _Vocabulary(NamedTuple):
  """A T5 vocabulary.

  Attributes:
    encode: text to ids, without special tokens.
    size: ids there are.
    special: ids of <pad> and </s>.
  """

  encode: Callable[[str], list[int]]
  size: int
  special: tuple[int | None, int | None]


@functools.lru_cache(maxsize=2)
def _load(path: str) -> _Vocabulary:
  file = epath.Path(path).expanduser()
  expected = 'tokenizer.json or the sentencepiece .model of google/umt5-xxl'
  if not path or not file.exists() or file.is_dir():
    raise ValueError(
      f'model.text.tokenizer={path!r} is not a file; expected the path of {expected}.'
    )
  readers = {'.json': ('tokenizers', _read_json), '.model': ('sentencepiece', _read_sentencepiece)}
  if file.suffix not in readers:
    raise ValueError(
      f'model.text.tokenizer={path!r} must end in .json or .model; expected {expected}.'
    )
  pointers.check(file)
  package, read = readers[file.suffix]
  library = _import(package)
  try:
    vocabulary = read(library, file.read_bytes())
  except Exception as e:  # The libraries raise what they like on a damaged file.
    raise ValueError(
      f'model.text.tokenizer={path!r} cannot be read ({e}); expected {expected}.'
    ) from e
  if vocabulary.special != (PAD, END):
    raise ValueError(
      f'model.text.tokenizer={path!r} has <pad> and </s> as {vocabulary.special} where T5 has '
      f'{(PAD, END)}; expected {expected}.'
    )
  return vocabulary


def _read_json(tokenizers: Any, content: bytes) -> _Vocabulary:
  tokenizer = tokenizers.Tokenizer.from_buffer(content)
  # The file may ask for either; length and padding are ours.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return _Vocabulary(
    encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    size=tokenizer.get_vocab_size(),
    special=(tokenizer.token_to_id('<pad>'), tokenizer.token_to_id('</s>')),
  )


def _read_sentencepiece(sentencepiece: Any, content: bytes) -> _Vocabulary:
  processor = sentencepiece.SentencePieceProcessor(model_proto=content)
  return _Vocabulary(
    encode=processor.encode,
    size=processor.get_piece_size(),
    special=(processor.pad_id(), processor.eos_id()),
  )


def _import(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise ValueError(
      f"model.text.kind='umt5' needs the package {name}: pip install -e '.[umt5]'."
    ) from e
