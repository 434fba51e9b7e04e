"""Fixtures of the library's own tests: the tiny data folder, and the tiny model with its catalogue and rows."""

from tests.pipeline.conftest import data_folder  # noqa: F401
from tests.trainer.conftest import (  # noqa: F401
    dataset,
    items,
    make_model,
    rows,
    sequences,
    settings,
    tokenizer,
    trie,
)
