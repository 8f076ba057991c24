"""The three layouts in which weights of this family are published: finds out which one a directory
has, and opens it.

  dreamzero   one directory of `model*.safetensors` for everything, config.json, experiment_cfg/
  wan         Wan-AI's originals: `diffusion_pytorch_model*.safetensors` and a `.pth` for each
              encoder
  diffusers   transformer/, vae/, text_encoder/, image_encoder/, tokenizer/, each with its
              config.json; ours also have action_modules/

What a layout looks like is in `dreamzero/`, `wan` and `diffusers/`.
"""

from __future__ import annotations

import dataclasses

from etils import epath

from wam_jax.interop import foreign
from wam_jax.interop import wan
from wam_jax.interop.diffusers import layout as diffusers_layout
from wam_jax.interop.dreamzero import layout as dreamzero_layout
from wam_jax.interop.files import jsonfile

LAYOUTS = ('dreamzero', 'wan', 'diffusers')


def find_layout(path: epath.Path) -> str:
  """Which layout the directory has.

  Raises:
    ValueError: none of them.
  """
  if not path.is_dir():
    raise ValueError(f'--source={path} is no directory.')
  # A transformer alone is enough to be told that the rest is missing.
  if (path / 'model_index.json').exists() or (path / 'transformer' / 'config.json').exists():
    return 'diffusers'
  # Wan-AI's directories have a config.json too, but no policy head.
  config = path / 'config.json'
  if config.exists() and 'action_head_cfg' in jsonfile.read(config):
    return 'dreamzero'
  if any(path.glob(f'{wan.STEM}*.safetensors*')):
    return 'wan'
  names = sorted(place.name for place in path.iterdir())
  raise ValueError(
    f'--source={path} is in no known layout. Expected config.json with action_head_cfg '
    f'(dreamzero), {wan.STEM}*.safetensors (wan) or transformer/config.json (diffusers); it '
    f'holds {", ".join(names[:10]) or "nothing"}.'
  )


def open_source(path: epath.Path, options: foreign.Options) -> foreign.Foreign:
  """The checkpoint at `path`.

  Raises:
    ValueError: it is not in that layout, or files are missing, cut or contradict each other.
  """
  layout = find_layout(path)
  if options.layout not in ('', layout):
    raise ValueError(
      f'--source={path} is in the layout {layout!r}, not {options.layout!r}; pass '
      f'--layout={layout} or leave it out.'
    )
  if layout == 'dreamzero':
    return _open_dreamzero(path, options)
  if options.base is not None:
    raise ValueError(
      f'--base is for LoRA checkpoints of DreamZero; --source={path} is in the layout {layout!r}.'
    )
  if layout == 'wan':
    return wan.open_source(path, options)
  return diffusers_layout.open_source(path, options)


def _open_dreamzero(path: epath.Path, options: foreign.Options) -> foreign.Foreign:
  """A DreamZero directory, with the base that it was trained on, which may be in any layout."""
  directory = dreamzero_layout.open_directory(path)
  if options.base is None:
    return dreamzero_layout.make_source(directory, None, options)
  # By its name, before it is opened: what was passed by mistake may be of any kind.
  directory.check_base(options.base)
  base = open_source(options.base, dataclasses.replace(options, layout='', base=None))
  return dreamzero_layout.make_source(directory, base, options)
