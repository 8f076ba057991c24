"""FLOPs of kernels that the report counts by formula; the report as a whole is in test_compile."""

from __future__ import annotations

from wam_jax.aot import hlo
from wam_jax.aot import report


def test_attention_kernels_by_hand():
  count = report._kernel_flops(1024, 1000)
  queries, keys, prompt = (hlo.Array('bf16', (2, 5, n, 128)) for n in (512, 1024, 384))

  def call(name):
    return hlo.Instruction(
      name=name,
      shape='',
      opcode='custom-call',
      operands=(),
      literal='',
      attributes='',
      is_root=False,
    )

  # The name and suffix that XLA gives the kernel; 2 products, 2 FLOPs, 2 x 5 heads of 128.
  forward = count(call('splash_mha_fwd_residuals.3'), [queries, keys])
  assert forward == 2 * 2 * 10 * 1000 * 128
  to_prompt = count(call('splash_mha_dkv_no_residuals'), [queries, prompt])
  assert to_prompt == 4 * 2 * 10 * 512 * 384 * 128
  # Left to the general count; 0 would hide it.
  assert count(call('another'), [queries, keys]) is None
