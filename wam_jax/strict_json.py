"""JSON as the standard has it, which has no word for NaN and infinities: they become null.

Python writes them as words that no other reader takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(content: Any, indent: int | None = None) -> str:
  """`content` as JSON; numbers that are not finite as null."""
  return json.dumps(_replace(content), indent=indent, allow_nan=False)


def _replace(content: Any) -> Any:
  if isinstance(content, Mapping):
    return {key: _replace(value) for key, value in content.items()}
  if isinstance(content, (list, tuple)):
    return [_replace(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return None
  return content
