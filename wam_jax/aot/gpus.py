"""GPUs that a program can be compiled for where there is none.

Rates: NVIDIA's data sheets. A program for a GPU that is not there is not tuned: its memory, copies,
layouts and kernels are what a run has, its time is a bound.
"""

from __future__ import annotations

from wam_jax import chips

H200 = chips.Slice(
  chip=chips.Chip(
    name='h200',
    kinds=('NVIDIA H200',),
    flops=989e12,
    hbm_bytes_per_s=4.8e12,
    link_bytes_per_s=450e9,
    network_bytes_per_s=50e9,
    usable_gib=130.0,
    devices=1,
    shapes=('1',),
    config='',
    options={},
    narrow_flops={'int8': 1979e12, 'float8_e4m3fn': 1979e12},
  ),
  shape=(1,),
)
GPUS = {'h200': H200}

# What XLA asks a device for, as the text of its protocol buffer `GpuTargetConfig`.
TARGETS = {
  'h200': """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H200"
"""
}

# Where there is no GPU: nobody looks for one.
ENVIRONMENT = {'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1', 'CUDA_VISIBLE_DEVICES': '-1'}
