"""The whole matrix, area by area."""

from . import data_rows, memory_rows, model_rows, peft_rows, settings_rows, vision_rows


AREAS = (data_rows, model_rows, vision_rows, memory_rows, peft_rows, settings_rows)
MATRIX = [row for area in AREAS for row in area.rows()]
