"""Which layout a directory has is found out, and a wrong guess is corrected."""

from __future__ import annotations

import pytest

from tests.interop import conversions
from tests.interop import tiny


def write_wan(path):
  tiny.write_wan(path, tiny.I2V)


def make_directory(path):
  path.mkdir()


def make_file(path):
  path.write_text('')


@pytest.mark.parametrize(
  ('write', 'layout', 'message'),
  [
    (
      tiny.write_dreamzero,
      'wan',
      "is in the layout 'dreamzero', not 'wan'; pass --layout=dreamzero",
    ),
    (write_wan, 'diffusers', "is in the layout 'wan', not 'diffusers'"),
    (make_directory, '', 'is in no known layout.* it holds nothing'),
    (make_file, '', 'is no directory'),
  ],
)
def test_wrong_layout(tmp_path, write, layout, message):
  write(tmp_path / 'source')
  with pytest.raises(ValueError, match=message):
    conversions.import_from(tmp_path / 'source', tmp_path / 'run', layout=layout)
