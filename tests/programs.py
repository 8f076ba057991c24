"""How tests start the project's programs."""

import os

# Without optimization passes the tiny programs of the tests compile four times faster; their
# numbers agree.
FAST_XLA = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'


def environment() -> dict[str, str]:
  """Of a subprocess on one device, with the allocator as it is: such programs run for a few steps
  only.
  """
  return os.environ | {'XLA_FLAGS': FAST_XLA, 'MALLOC_TRIM_THRESHOLD_': '-1'}
