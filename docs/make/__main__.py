"""Makes everything in the pages that is drawn or written from the code.

python -m docs.make

Run it when a rule of masks, a noise schedule or a config key has changed; a test compares.
"""

from __future__ import annotations

import pathlib

from docs.make import config_reference
from docs.make import pictures
from wam_jax import cli

PAGES = pathlib.Path(__file__).parents[1]


def make_all() -> dict[pathlib.Path, str]:
  """Every made file, and what it should hold."""
  made = {PAGES / 'config.md': config_reference.write()}
  for name, picture in pictures.draw_all().items():
    made[PAGES / 'pictures' / f'{name}.svg'] = picture
  return made


def main(unused_argv: list[str]) -> None:
  for path, content in make_all().items():
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != content:
      path.write_text(content)
      print(f'wrote {path.relative_to(PAGES.parent)}')


if __name__ == '__main__':
  cli.run(main)
