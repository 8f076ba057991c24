"""The compiler's plan of memory, read off its texts and against the finished program."""

from __future__ import annotations

import dataclasses

from tests import needs
from tests import train_config
from wam_jax import chips
from wam_jax import config as cfg
from wam_jax.aot import compiler
from wam_jax.aot import memory


def test_memory_is_read_off_the_buffers():
  buffers = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <77 x @0> (size=512,offset=0): s32[]
allocation 1: size 1000, parameter 4, shape |f32[250]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 300, parameter 5, shape |f32[75]| at ShapeIndex {}:
allocation 3: size 40, maybe-live-out:
allocation 4: size 7000, preallocated-temp:
allocation 5: size 900, color 1, preallocated-temp:
allocation 6: size 60, color 5, preallocated-temp:
"""
  usage = (
    'Memory Space: default (color=0)\nTotal bytes: 8900 (8.7KiB)\n  cumulative_size;       size;\n'
    '    5.00KiB( 70%);    5.00KiB;          128;        1; f32[1280]\n'
  )
  compiled = compiler.Compiled(
    hlo='',
    buffers=buffers,
    usage=usage,
    arguments={},
    partitions=[],
    mesh={},
    attention=(0, 0),
    libtpu='',
    seconds=1.0,
    analysis={'generated_code': 100},
  )
  found = memory.read(compiled, chips.CHIPS['v6e'])
  assert dataclasses.asdict(found) == dict(
    arguments=1300,
    reused=1000,
    outputs=40,
    temporaries=7000,
    program=100,
    total=9000,
    host=60,
    usable=int(31.25 * 2**30),
  )
  assert memory.list_largest_temporaries(compiled) == ['5.00KiB: f32[1280]']


@needs.libtpu
def test_memory_is_what_the_finished_program_states(tmp_path):
  config = dataclasses.replace(
    cfg.from_config_dict(train_config.get_config()),
    mesh={'data': 2, 'fsdp': 2, 'tensor': 1, 'seq': 1},
  )
  compiled = compiler.compile_step(config, chips.find('v5e:2x2'), tmp_path, machine_code=True)
  found = memory.read(compiled, chips.CHIPS['v5e'])
  said = compiled.analysis
  assert found.program == said['generated_code'] > 0
  assert (found.arguments, found.reused) == (said['argument'], said['alias'])
  # Scratch of the machine code is some MiB in any program.
  assert 0 <= said['temp'] - found.temporaries < 8 * 2**20
  assert found.outputs == said['output'] - said['alias']
