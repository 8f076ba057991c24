"""Which errors of reading and writing may pass by themselves; `storage.retry` waits for them."""

from __future__ import annotations

# Mistakes: no wait mends these. What is not allowed may pass: tokens are renewed, grants spread.
_LASTING = (
  AssertionError,
  AttributeError,
  IsADirectoryError,
  LookupError,
  MemoryError,
  NotADirectoryError,
  NotImplementedError,
  TypeError,
)
# Words of gRPC for a status, with which TensorStore's errors begin.
_LASTING_STATUS = ('UNAUTHENTICATED', 'INVALID_ARGUMENT', 'UNIMPLEMENTED')
_PASSING_STATUS = (
  'ABORTED',
  'CANCELLED',
  'DATA_LOSS',
  'DEADLINE_EXCEEDED',
  'INTERNAL',
  'NOT_FOUND',
  'PERMISSION_DENIED',
  'RESOURCE_EXHAUSTED',
  'UNAVAILABLE',
  'UNKNOWN',
)
# Of HTTP's codes that blame the caller: not allowed or not there (yet), too slow, crossed by
# another, too many.
_PASSING_CODES = (403, 404, 408, 409, 412, 425, 429)


def may_pass(error: Exception) -> bool:
  """Whether another try may find it otherwise; what is of no known kind may.

  What is not there counts as passing, since mounts may show files late.
  """
  if isinstance(error, _LASTING):
    return False
  # As fsspec and Google's libraries have it.
  code = getattr(error, 'code', None)
  if isinstance(code, int) and 400 <= code < 500:
    return code in _PASSING_CODES
  text = str(error)
  if any(status in text for status in _LASTING_STATUS):
    return False
  # TensorStore raises ValueErrors, too; those without a status are our own, and answers.
  return not isinstance(error, ValueError) or any(status in text for status in _PASSING_STATUS)
