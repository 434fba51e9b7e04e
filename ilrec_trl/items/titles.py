"""Titles as names of items: clean them, make them distinct, and shorten them."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html.entities import html5
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ESCAPED_AMPERSAND = re.compile("&(?:amp;)+", re.IGNORECASE)
# Only with a semicolon: otherwise "Sound&notes" would become "Sound¬es"
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_CODE = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
# Only known tags: "5 < 7 > 3" and semantic-ID tokens such as <a_1> stay
_INLINE = "a|abbr|b|big|code|em|font|i|mark|s|small|span|strike|strong|sub|sup|tt|u"
_BLOCK = "body|br|center|dd|div|dl|dt|h[1-6]|head|hr|html|img|li|ol|p|pre|table|tbody|td|th|thead|tr|ul"
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK})(?:\s[^<>]*)?/?>", re.IGNORECASE)
# Control characters, soft hyphen, zero-width space and joiner of words, byte order mark, marks of writing direction
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# Joiners shape letters of Arabic and Indic scripts and join emoji; next to Latin letters they have no use
_STRAY_JOINER = re.compile("(?<![\u0600-\U0010ffff])[\u200c\u200d]+|[\u200c\u200d]+(?![\u0600-\U0010ffff])")


def clean_title(title: str) -> str:
    """
    A title as a reader sees it. HTML entities are resolved, even if they are escaped twice. HTML tags, control and
    invisible characters and lone surrogates are removed. Unicode is composed (NFC), and white space becomes one space.

    NFC joins only what looks like one character. NFKC would also write "10²" as "102" and "½" as "1⁄2", which changes
    titles and makes different ones equal.

    Example:

    ```python
    >>> from ilrec_trl.items.titles import clean_title

    >>> clean_title("  Oud &amp;amp; Lute<br/>\\u200b10&nbsp;cm² ")
    'Oud & Lute 10 cm²'

    ```
    """
    if title.isascii() and title.isprintable() and "&" not in title and "<" not in title:
        return " ".join(title.split())
    title = title.encode("utf-16", "surrogatepass").decode(
        "utf-16", "ignore"
    )  # a pair becomes one character, a lone one is dropped
    # A pass may uncover something, such as an escaped tag, for the next one
    while (cleaned := _clean_once(title)) != title:
        title = cleaned
    return title


def _clean_once(title: str) -> str:
    title = _ENTITY.sub(_resolve, _ESCAPED_AMPERSAND.sub("&", title))
    title = _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", _CODE.sub(" ", title)))
    title = _STRAY_JOINER.sub("", _INVISIBLE.sub("", title))
    return " ".join(unicodedata.normalize("NFC", title).split())


def _resolve(found: re.Match[str]) -> str:
    entity = found[0]
    return html.unescape(entity) if entity[1] == "#" else html5.get(entity[1:], entity)


def distinct_titles(titles: Mapping[str, str], brands: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Append the brand to titles that several items have, and number the titles that are still equal.

    Args:
        titles (`dict[str, str]`): Cleaned title of every item. The first of equal titles gets no number.
        brands (`dict[str, str]`, *optional*): Brand, maker or shop of the items for which it is known.

    Example:

    ```python
    >>> from ilrec_trl.items.titles import distinct_titles

    >>> distinct_titles({"a": "Harp", "b": "Harp", "c": "Harp", "d": "Drum"}, brands={"c": "Lyon"})
    {'a': 'Harp', 'b': 'Harp (2)', 'c': 'Harp (Lyon)', 'd': 'Drum'}

    ```
    """
    counts = Counter(titles.values())
    named = {}
    for item_id, title in titles.items():
        brand = clean_title((brands or {}).get(item_id) or "")
        named[item_id] = f"{title} ({brand})" if counts[title] > 1 and brand else title
    taken, given = set(named.values()), set()
    for item_id, title in named.items():
        if title in given:
            title = _numbered(title, taken)
        taken.add(title)
        given.add(title)
        named[item_id] = title
    return named


def _numbered(title: str, taken: set[str]) -> str:
    number = 2
    while (numbered := f"{title} ({number})") in taken:
        number += 1
    return numbered


def shortened_titles(
    titles: Mapping[str, str], count_tokens: Callable[[list[str]], list[int]], max_tokens: int
) -> dict[str, str]:
    """
    Cut titles of more than `max_tokens` tokens after a word. Titles that differed still differ: cut titles that would
    be equal are numbered.

    Raises:
        ValueError: if not even the first word of a title fits; names the items.
    """
    distinct = list(dict.fromkeys(titles.values()))
    lengths = dict(zip(distinct, count_tokens(distinct), strict=True))
    new = {title: title for title in distinct if lengths[title] <= max_tokens}
    taken, hopeless = set(new), []
    for title in distinct:
        if title in new:
            continue
        words, number = title.split(), 1
        while (short := _cut(words, number, count_tokens, max_tokens)) in taken:
            number += 1
        if short is None:
            hopeless.append(title)
        else:
            new[title] = short
            taken.add(short)
    if hopeless:
        items = [item_id for item_id, title in titles.items() if title in set(hopeless)]
        raise ValueError(
            f"{len(items)} titles cannot be cut to {max_tokens} tokens, since their first word alone has more, or too "
            f"many start alike: {items[:5]}. Allow more tokens, or give these items other titles."
        )
    return {item_id: new[title] for item_id, title in titles.items()}


def _cut(
    words: Sequence[str], number: int, count_tokens: Callable[[list[str]], list[int]], max_tokens: int
) -> str | None:
    """The longest start of the title that fits, with the number if it is above 1."""
    ending = f" ({number})" if number > 1 else ""
    # A word has at least one token
    candidates = [" ".join(words[:kept]) + ending for kept in range(1, min(len(words), max_tokens + 1))]
    fitting = [text for text, length in zip(candidates, count_tokens(candidates), strict=True) if length <= max_tokens]
    return fitting[-1] if fitting else None


def refuse_special_tokens(
    tokenizer: PreTrainedTokenizerBase, titles: Mapping[str, str], sequences: Mapping[str, Sequence[int]]
) -> None:
    """Refuse titles with words that the tokenizer reads as its special tokens, such as the end of the sequence."""
    special = set(tokenizer.all_special_ids)
    unknown = {
        tokenizer.unk_token_id
    }  # unless the title spells it, it stands for a character that the tokenizer lacks
    found = [
        item_id
        for item_id, tokens in sequences.items()
        if special.intersection(tokens) - (unknown if str(tokenizer.unk_token) not in titles[item_id] else set())
    ]
    if found:
        raise ValueError(
            f"The titles of {len(found)} items hold special tokens of the tokenizer: {found[:5]}, the first is "
            f"{titles[found[0]]!r}. Change these titles, or leave the items out."
        )
