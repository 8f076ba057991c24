"""The gallery shows what is there, in small files, and its command makes it."""

from __future__ import annotations

import pathlib
import re

import pytest
from PIL import Image

from tests import programs

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'docs/gallery.md'
PLACE = ROOT / 'docs/pictures/gallery'
SHIPPED = sorted(path.name for path in (ROOT / 'weights').iterdir() if path.is_dir())


def test_every_picture_is_small_and_shown_somewhere():
  pages = ''.join(path.read_text() for path in [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')])
  for path in PLACE.iterdir():
    assert f'pictures/gallery/{path.name})' in pages, path
    assert path.stat().st_size < 500_000, path


def test_the_page_counts_what_it_shows():
  """Each section's count is that of the words below its films."""
  sections = PAGE.read_text().split('\n## ')[1:]
  assert [section.split('\n')[0] for section in sections] == SHIPPED
  for section in sections:
    done, films = map(int, re.search(r'(\d+) of these (\d+) scenes', section).groups())
    words = re.findall(r'\.webp\) (.*?) \|', section)
    assert len(words) == films
    assert sum(': done after' in each for each in words) == done
    assert sum(': not done in' in each for each in words) == films - done


@pytest.mark.slow
def test_the_command_makes_films_of_the_scenes_that_were_named(tmp_path):
  flags = ('--workdirs=weights/tiny', '--scenes=4', f'--output={tmp_path}')
  done = programs.run('docs.make.gallery', *flags)
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'gallery.md').read_text()
  assert 'of these 1 scenes' in page
  with Image.open(tmp_path / 'pictures/gallery/tiny_disc_4.webp') as film:
    assert film.n_frames > 10
    assert film.size == (506, 422)


def test_scenes_are_numbers():
  done = programs.run('docs.make.gallery', '--scenes=best')
  assert done.returncode == 2
  assert done.stderr.startswith('error: --scenes=best must be numbers of scenes')


def test_workdirs_whose_films_would_have_the_same_names_are_refused():
  done = programs.run('docs.make.gallery', '--workdirs=weights/tiny,other/tiny')
  assert done.returncode == 2
  assert 'must have names of their own' in done.stderr
