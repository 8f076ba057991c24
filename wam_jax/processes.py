"""How the processes of one job find each other at the start, and which of them speak."""

from __future__ import annotations

import math
import os
import pathlib
import socket
import sys
import threading
import time
import warnings

import jax
from absl import flags
from absl import logging

# What a machine is asked about its job may fail for some seconds: jax issue 24432.
_PAUSES_S = (1, 2, 4, 8, 16)


flags.disclaim_key_flags()  # --help shows the flag with the command that defines it.


def define_flag() -> flags.FlagHolder:
  """Defines --start_timeout_s, for `join`."""
  return flags.DEFINE_float(
    'start_timeout_s',
    900.0,
    'How long the first of several processes waits for the last; hosts install at different '
    'speeds.',
    lower_bound=1.0,
  )


def join(
  timeout_s: float,
  address: str | None = None,
  count: int | None = None,
  number: int | None = None,
) -> None:
  """Returns when all processes of the job have started; ends the program, with one message, if some
  have not after `timeout_s`.

  Args:
    address: HOST:PORT of process 0; by default that, like the others, is what the TPU, SLURM or
      Kubernetes job around this process says.
    count: how many processes there are.
    number: which one this is.
  Raises:
    ValueError: there is no such job.
  """
  # JAX would end it with a stack of C++ that blames another process.
  clock = threading.Timer(timeout_s, _give_up, [timeout_s, address, number])
  clock.daemon = True
  clock.start()
  try:
    _initialize(address, count, number, initialization_timeout=math.ceil(timeout_s) + 60)
  finally:
    clock.cancel()
  if jax.process_index() > 0:
    _fall_silent()


def _initialize(*by_hand: str | int | None, initialization_timeout: int) -> None:
  """`jax.distributed.initialize`, again after a pause where the machine did not say what its job
  is.
  """
  for pause_s in (*_PAUSES_S, None):
    try:
      jax.distributed.initialize(*by_hand, initialization_timeout=initialization_timeout)
      return
    except (OSError, ValueError) as e:
      # A TPU has a job; elsewhere ValueError says that there is none.
      may_pass = isinstance(e, OSError) or _has_tpu()
      if pause_s is None or not may_pass or None not in by_hand:
        raise
      print(
        f'the job around this process is not known yet ({_shorten(e)}); asking again in '
        f'{pause_s} s',
        file=sys.stderr,
      )
      time.sleep(pause_s)


def _has_tpu() -> bool:
  """Whether this machine has TPUs; starts no backend."""
  devices = pathlib.Path('/dev')
  return any(devices.glob('accel[0-9]*')) or any(devices.glob('vfio/[0-9]*'))


def _give_up(timeout_s: float, address: str | None, number: int | None) -> None:
  who = 'This process' if number is None else f'Process {number}'
  where = f' at {address}' if address else ''
  print(
    f'error: {who} on {socket.gethostname()} has waited {timeout_s:g} s for the others{where}. '
    'Start the same command on every host, and look for the host whose log ends first; give slow '
    'ones longer with --start_timeout_s.',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)  # The main thread waits inside of JAX.


def _fall_silent() -> None:
  """After one line this process prints errors only: process 0 speaks for the job."""
  print(
    f'process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: '
    'process 0 reports',
    file=sys.stderr,
    flush=True,
  )
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter('ignore')


def _shorten(error: BaseException) -> str:
  return ' '.join(str(error).split())[:200] or type(error).__name__
