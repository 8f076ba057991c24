"""The shape of the released model with all of its encoders, tiny, for windows of the synthetic
robot.
"""

from __future__ import annotations

import dataclasses
import pathlib

import tokenizers

from tests.data import synthetic
from tests.models import test_encoders
from wam_jax import config as cfg

# Four frames a chunk, as a Wan VAE takes them.
ROBOT = dataclasses.replace(synthetic.CLOCK, name='clock_film', video_fps=5.0)


def write_vocabulary(path: pathlib.Path) -> str:
  """Letters and digits, with the ids of T5 for padding and end."""
  pieces = ['<pad>', '</s>', '<unk>', *'▁abcdefghijklmnopqrstuvwxyz0123456789']
  made = tokenizers.Tokenizer(
    tokenizers.models.Unigram([(piece, -3.0) for piece in pieces], unk_id=2)
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.save(str(path))
  return str(path)


def make_model(vocabulary: str) -> cfg.ModelConfig:
  m = test_encoders.MODEL
  return dataclasses.replace(
    m,
    patch=1,
    actions_per_chunk=8,
    num_layers=1,
    tokenizer=dataclasses.replace(m.tokenizer, resize=()),
    text=dataclasses.replace(m.text, vocab=48, length=12, tokenizer=vocabulary),
  )
