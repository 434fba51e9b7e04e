"""The whole matrix, area by area."""

from . import data_rows


MATRIX = [*data_rows.rows()]
