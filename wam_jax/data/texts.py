"""Which instructions a dataset holds, and which of the prompts made of them are cut.

A text encoder reads so many tokens and no more, and nothing in a loss tells that the end of a
sentence is missing: it is said when training starts, and by `data.validate`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from wam_jax import config as cfg
from wam_jax.data import beside
from wam_jax.data import episode as episode_lib
from wam_jax.data import prompts
from wam_jax.data import record as record_lib
from wam_jax.data import scan
from wam_jax.data import sources

_COUNTED = 2000  # Prompts whose tokens are counted, the longest first.
_SHOWN = 200  # Characters of a prompt in a message.


@dataclasses.dataclass(frozen=True)
class Cut:
  """The prompts that are longer than the text encoder reads.

  Attributes:
    count: of different instructions.
    total: different instructions there are.
    longest: the prompt with the most tokens.
    tokens: of that.
    length: tokens that are read.
  """

  count: int
  total: int
  longest: str
  tokens: int
  length: int

  def describe(self, where: str) -> str:
    """A sentence for people; `where` is what the prompts are of."""
    shown = self.longest if len(self.longest) <= _SHOWN else f'{self.longest[:_SHOWN]}...'
    return (
      f'{self.count} of the {self.total} instructions of {where} give prompts that are cut: the '
      f'longest has {self.tokens} tokens, of which config.model.text.length={self.length} are '
      f'read: {shown!r}'
    )


def find_cut(
  texts: Iterable[str], record: record_lib.Embodiment, config: cfg.TextConfig
) -> Cut | None:
  """What of these instructions is cut; None if nothing is.

  Raises:
    ValueError: the vocabulary of `config` cannot be read.
  """
  count_tokens = prompts.make_counter(config)
  every = {record.instruct(text) for text in texts}
  # No token is shorter than a byte, so that short prompts need not be counted.
  long = [prompt for prompt in every if len(prompt.encode()) >= config.length]
  long.sort(key=lambda prompt: (-len(prompt.encode()), prompt))
  counted = {prompt: count_tokens(prompt) for prompt in long[:_COUNTED]}
  cut = [prompt for prompt, tokens in counted.items() if tokens > config.length]
  if not cut:
    return None
  longest = max(cut, key=counted.__getitem__)
  return Cut(len(cut), len(every), longest, counted[longest], config.length)


class Texts:
  """The different instructions of a split, as `scan` finds and keeps them.

  Attributes:
    texts: under any of the record's language keys, sorted; () before they are loaded or saved.
  """

  def __init__(self, episodes: sources.Episodes):
    self.episodes = episodes
    self.texts: tuple[str, ...] = ()
    self._found: set[str] = set()
    self._file = scan.name_file('wam_texts', episodes) + '.json'
    self._key = f'{episodes.fingerprint} {episodes.split} {episodes.record.language}'

  def load(self) -> bool:
    content = beside.read(self.episodes.path, self._file)
    kept = {} if content is None else json.loads(content)
    if kept.get('key') != self._key:
      return False
    self.texts = tuple(kept['texts'])
    return True

  def add(self, number: int, outline: episode_lib.Outline) -> None:
    del number
    for span in outline.spans:
      self._found.update(span.texts)

  def save(self) -> None:
    self.texts = tuple(sorted(self._found))
    content = json.dumps({'key': self._key, 'texts': self.texts})
    self.episodes.keep(self._file, content.encode())


def load(episodes: sources.Episodes) -> tuple[str, ...]:
  """The different instructions of a split; read once and kept beside it."""
  texts = Texts(episodes)
  scan.complete([texts])
  return texts.texts
