"""How the official server draws a robot's cameras into one picture.

Source: DreamZero `DreamTransform._prepare_video`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wam_jax.data import prompts
from wam_jax.data import record as record_lib

PLACES = 3  # A fourth view has no place: the reference leaves that quarter black.
RESIZE = 'bilinear'


def find_size(record: record_lib.Embodiment) -> tuple[int, int]:
  """Rows and columns of a view, if the composite is the reference's: two by two views, or one."""
  rows, columns = record.composite
  return (rows, columns) if len(record.views) == 1 else (rows // 2, columns // 2)


def list_changes(tag: str, record: record_lib.Embodiment) -> Iterator[str]:
  """What a record that nobody has trained with yet must say otherwise, so that the official server
  can show what it says; a few words each. Sizes of views are kept.
  """
  views = record.views
  if len(views) > PLACES:
    yield f'at most {PLACES} of the {len(views)} cameras'
  shown = views[:PLACES]
  size = (shown[0].height, shown[0].width)
  there, composite = make(tag, [view.key for view in shown], size)
  if (there, composite) != (shown, record.composite):
    places = ', '.join(map(_write_place, there))
    black = ' (its right half stays black)' if len(shown) == 2 else ''
    yield f'"composite": {list(composite)}{black} with the views {places}'
  if record.resize != RESIZE:
    yield f'"resize": "{RESIZE}"'
  if record.prompt != prompts.TEMPLATES.get(tag, ''):
    yield '"prompt": that of the --tag of the export'


def _write_place(view: record_lib.View) -> str:
  repeated = f', width {view.width}, repeat {view.repeat}' if view.repeat > 1 else ''
  return f'{view.key} at row {view.row}, column {view.column}{repeated}'


def make(
  tag: str, names: Sequence[str], size: tuple[int, int]
) -> tuple[tuple[record_lib.View, ...], tuple[int, int]]:
  """The views of the reference's composite and its size.

  Args:
    tag: the reference's name of the robot.
    names: of the cameras, in order.
    size: rows and columns of a view.

  DROID has the wrist camera above, every column twice, and the exterior cameras below; others fill
  a square by columns. Source: DreamZero `DreamTransform._prepare_video`.
  """
  rows, columns = size
  if len(names) == 1:
    whole = record_lib.View(key=names[0], row=0, column=0, height=rows, width=columns)
    return (whole,), size

  top_left = {'row': 0, 'column': 0, 'width': columns}
  top_right = {'row': 0, 'column': columns, 'width': columns}
  bottom_left = {'row': rows, 'column': 0, 'width': columns}
  bottom_right = {'row': rows, 'column': columns, 'width': columns}
  top = {'row': 0, 'column': 0, 'width': 2 * columns, 'repeat': 2}
  if tag == 'oxe_droid' and len(names) >= 3:
    places = (bottom_left, bottom_right, top)
  else:
    places = (top_left, bottom_left, top_right)
  views = [record_lib.View(key=name, height=rows, **place) for name, place in zip(names, places)]
  return tuple(views), (2 * rows, 2 * columns)
