"""Our checkpoints as a conversion sees them: what is damaged or absent is refused."""

from __future__ import annotations

import pytest

from tests.interop import conversions
from tests.interop import tiny
from wam_jax.interop import own


def test_damaged_checkpoint_of_ours_is_refused(tmp_path):
  tiny.write_dreamzero(tmp_path / 'source')
  conversions.import_from(tmp_path / 'source', tmp_path / 'run')

  # The config of another model than the arrays are of.
  def widen(content):
    content['config']['model']['mlp_dim'] += 2

  conversions.edit_json(tmp_path / 'run/checkpoints/0/metadata/metadata', widen)
  message = r'does not fit its config:\n  dit: blocks/ffn/in/b is \(3, 48\); expected \(3, 50\)'
  with pytest.raises(ValueError, match=message):
    conversions.export_to(tmp_path / 'run', tmp_path / 'back')
  with pytest.raises(ValueError, match='has no checkpoint of step 7; it has 0'):
    own.open_workdir(tmp_path / 'run', 7)
