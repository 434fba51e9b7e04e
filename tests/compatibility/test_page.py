"""The page is the rows, and the rows leave nothing out."""

import dataclasses
from pathlib import Path

import pytest
from trl import SFTConfig

from .fields import UNSET
from .matrix import MATRIX
from .page import PAGE, write_page
from .workbench import SETTINGS


ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_written_from_the_rows():
    message = "docs/compatibility.md is not what the rows say: run `python -m tests.compatibility.page`"
    assert PAGE.read_text(encoding="utf-8") == write_page(), message


def test_every_field_is_set_by_a_row_or_named_with_a_reason():
    fields = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    set_by_rows = {name for row in MATRIX for name in row.options} | set(SETTINGS) | {"output_dir"}
    assert fields - set_by_rows - set(UNSET) == set(), "set these in a row, or name them in fields.py"
    assert set(UNSET) & set_by_rows == set(), "a row sets these: take them out of fields.py"
    assert set(UNSET) <= fields, "TRL no longer has these"


def test_rows_have_names_of_their_own():
    names = [(row.area, row.name) for row in MATRIX]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("place", sorted({row.test or row.gpu for row in MATRIX if row.test or row.gpu}))
def test_what_a_row_points_to_exists(place):
    path, _, name = place.partition("::")
    assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8")
