"""What the parser reads of a program's text."""

import pytest

from wam_jax.aot import hlo


def test_an_instruction_is_read_with_its_operands_and_what_it_calls():
  program = hlo.parse("""
ENTRY %main (p: f32[4,8]) -> (f32[4,8], u32[]) {
  %p = f32[4,8]{1,0:T(8,128)} parameter(0)
  ROOT %f.2 = (f32[4,8]{1,0:T(8,128)S(1)}, /*index=1*/u32[]) fusion(f32[4,8] %p), calls=%inner
}
""")
  root = hlo.find_root(program.computations[program.entry])
  assert (root.name, root.opcode, root.operands) == ('f.2', 'fusion', ('p',))
  assert root.called == ['inner']
  assert root.called_as('calls') == 'inner'
  # The first array lies on the chip; a number has no axes.
  assert root.arrays == (hlo.Array('f32', (4, 8), space=1), hlo.Array('u32', ()))
  assert [array.bytes for array in root.arrays] == [128, 4]


def test_an_element_of_a_tuple_by_number():
  """As libtpu 0.0.50 writes it, where others take the element by an instruction of its own."""
  program = hlo.parse("""
ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %both = (f32[8]{0:T(128)}, f32[4]{0}) all-reduce(%p, %p), replica_groups={}
  ROOT %n = f32[4]{0} negate(%both#1)
}
""")
  computation = program.computations['main']
  element = computation[computation['n'].operands[0]]
  assert element.arrays == (hlo.Array('f32', (4,)),)
  assert (element.opcode, element.operands) == ('get-tuple-element', ('both',))
  # It stands where its value is made, before whoever takes it.
  assert list(computation) == ['p', 'both', 'both#1', 'n']


def test_a_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match='no HLO module'):
    hlo.parse('nothing')
