"""The whole matrix, area by area."""

from . import data_rows, memory_rows, model_rows, peft_rows, settings_rows


MATRIX = [*data_rows.rows(), *model_rows.rows(), *memory_rows.rows(), *peft_rows.rows(), *settings_rows.rows()]
