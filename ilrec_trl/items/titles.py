"""Titles as items: cleaned."""

from __future__ import annotations

import html
import unicodedata


def clean_title(title: str) -> str:
    """Resolve HTML entities, compose Unicode (NFC) and make runs of white space one space."""
    return " ".join(unicodedata.normalize("NFC", html.unescape(title)).split())
