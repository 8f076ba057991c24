"""Figures say where they come from: those of benchmarks/RESULTS.md in its first table, those of
README and the pages beside them.
"""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMIT = re.compile(r'\b[0-9a-f]{7}\b')
FIGURE = re.compile(r'\d+ %|\d minutes|\d+ days|\d times\b|episodes succeed|of \d+ episodes')


def read_sections():
  """(the text before the first section, each section by its title)."""
  first, *sections = (ROOT / 'benchmarks' / 'RESULTS.md').read_text().split('\n## ')
  return first, dict(section.split('\n', 1) for section in sections)


def make_anchor(title):
  return re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')


@pytest.mark.parametrize('title', read_sections()[1])
def test_each_section_of_the_results_has_command_machine_and_commit(title):
  first, sections = read_sections()
  (row,) = re.findall(rf'^\| \[[^]]*\]\(#{make_anchor(title)}\) (.*)$', first, re.M)
  _, command, machine, commit, _ = row.split('|')
  assert machine.strip()
  assert COMMIT.search(commit)
  assert command.strip() == 'the same' or '`' in command
  # The whole command is beside the figures.
  assert re.search(r'`(python -m|pytest)', sections[title])


@pytest.mark.parametrize(
  'page', ['README.md', *(f'docs/{name}.md' for name in ('index', 'fits', 'control', 'serving'))]
)
def test_figures_of_pages_name_a_commit_of_the_results(page):
  known = set(COMMIT.findall((ROOT / 'benchmarks/RESULTS.md').read_text()))
  paragraphs = (ROOT / page).read_text().split('\n\n')
  measured = [text for text in paragraphs if FIGURE.search(text)]
  assert measured
  for text in measured:
    named = set(COMMIT.findall(text))
    assert named, text
    assert named <= known, text


def test_the_smallest_slices_are_those_of_the_results():
  rows = [
    re.findall(r'^\| (?:14B|5B) \| `.*$', (ROOT / page).read_text(), re.M)
    for page in ('docs/fits.md', 'benchmarks/RESULTS.md')
  ]
  assert len(rows[0]) == 2
  assert rows[0] == rows[1]
