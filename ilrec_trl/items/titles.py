"""Titles as names of items: cleaned, told apart, and kept short."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence


# With its semicolon alone: without it "Sound&notes" would become "Sound¬es"
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_CODE = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
# Known tags alone: "5 < 7 > 3" and semantic-ID tokens such as <a_1> stay
_INLINE = "a|abbr|b|big|code|em|font|i|mark|s|small|span|strike|strong|sub|sup|tt|u"
_BLOCK = "body|br|center|dd|div|dl|dt|h[1-6]|head|hr|html|img|li|ol|p|pre|table|tbody|td|th|thead|tr|ul"
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK})(?:\s[^<>]*)?/?>", re.IGNORECASE)
# Control characters, soft hyphen, zero-width space and joiner of words, byte order mark, marks of writing direction
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# Joiners shape letters of Arabic and Indic scripts and join emoji; next to Latin ones they are debris
_STRAY_JOINER = re.compile("(?<![\u0600-\U0010ffff])[\u200c\u200d]+|[\u200c\u200d]+(?![\u0600-\U0010ffff])")


def clean_title(title: str) -> str:
    """
    A title as a reader sees it: HTML entities, also doubly escaped ones, resolved; HTML tags, control and invisible
    characters and lone surrogates removed; Unicode composed (NFC); runs of white space one space.

    NFC joins what is one character to any reader. NFKC, which would also write "10²" as "102" and "½" as "1⁄2",
    changes what a title says, and titles that differ in it would become one.

    Example:

    ```python
    >>> from ilrec_trl.items.titles import clean_title

    >>> clean_title("  Oud &amp;amp; Lute<br/>\\u200b10&nbsp;cm² ")
    'Oud & Lute 10 cm²'

    ```
    """
    if title.isascii() and title.isprintable() and "&" not in title and "<" not in title:
        return " ".join(title.split())
    title = title.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")  # pairs are one character, others none
    # What one pass uncovers, such as an escaped tag, the next one cleans
    while (cleaned := _clean_once(title)) != title:
        title = cleaned
    return title


def _clean_once(title: str) -> str:
    title = _ENTITY.sub(lambda found: html.unescape(found[0]), title)
    title = _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", _CODE.sub(" ", title)))
    title = _STRAY_JOINER.sub("", _INVISIBLE.sub("", title))
    return " ".join(unicodedata.normalize("NFC", title).split())
