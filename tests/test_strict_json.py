"""What is written as JSON is JSON for other readers than Python, too."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wam_jax import strict_json
from wam_jax.interop.files import jsonfile


def refuse(word):
  raise ValueError(word)


def test_what_is_not_finite_is_null():
  content = {'a': [1.5, float('nan'), (np.float64('inf'), -float('inf'))], 'b': {'c': 3, 'd': None}}
  text = strict_json.dumps(content, indent=2)
  got = json.loads(text, parse_constant=refuse)
  assert got == {'a': [1.5, None, [None, None]], 'b': {'c': 3, 'd': None}}


def test_files_of_other_projects_never_hold_it(tmp_path):
  # There null is no number either: whoever writes must know better.
  with pytest.raises(ValueError, match='not JSON compliant'):
    jsonfile.write(tmp_path / 'metadata.json', {'mean': [float('nan')]})
  assert not (tmp_path / 'metadata.json').exists()
