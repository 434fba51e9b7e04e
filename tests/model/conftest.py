"""The tiny catalogues, tokenizers and models of the items' tests."""

from tests.items.conftest import *  # noqa: F403
