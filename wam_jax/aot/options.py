"""Whether the compiler of a slice that is not there takes the options of a run; asked in a process
of its own, as `compiler` says.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

from wam_jax import chips
from wam_jax import compiler_options
from wam_jax.aot import compiler


def try_out(options: compiler_options.Options, where: chips.Slice) -> bool:
  """Whether they could be tried, which takes libtpu.

  Raises:
    ValueError: the compiler does not take them.
  """
  if importlib.util.find_spec('libtpu') is None:
    return False
  request = {'options': options, 'topology': where.topology}
  done = subprocess.run(
    [sys.executable, '-m', 'wam_jax.aot.options'],
    input=json.dumps(request),
    env=os.environ | compiler.ENVIRONMENT,
    text=True,
    capture_output=True,
    check=False,
  )
  if done.returncode:
    raise ValueError(f'The compiler could not be asked about the options:\n{done.stderr[-2000:]}')
  mistake = json.loads(done.stdout)['mistake']
  if mistake:
    raise ValueError(mistake)
  return True


def _main() -> None:
  request = json.load(sys.stdin)
  device = compiler.describe(chips.find(request['topology']))[0]
  mistake = ''
  try:
    compiler_options.try_out(request['options'], device)
  except ValueError as e:
    mistake = str(e)
  print(json.dumps({'mistake': mistake}))


if __name__ == '__main__':
  _main()
