import html
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_trl import ItemCatalog
from ilrec_trl.items.titles import clean_title, distinct_titles, shortened_titles


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("  T&Uuml;RLEN\t2&nbsp;mm \n", "TÜRLEN 2 mm"),
        ("u\u0308ber", "über"),
        ("AT&T 5 < 7 > 3", "AT&T 5 < 7 > 3"),
        ("&amp;amp;amp;lt;b&gt;Oud &amp;quot;Q&amp;quot;", 'Oud "Q"'),  # escaped three times
        ("Sound&notes & &unknown; R&D;", "Sound&notes & &unknown; R&D;"),  # no entities of HTML
        ("&#68;rum &#x44;rum", "Drum Drum"),
        ("<b>Drum</b> H<sub>2</sub>O<br/>red<p class='x'>x</p>", "Drum H2O red x"),
        ("Drum <script>alert('<b>')</script><style>p {}</style>kit", "Drum kit"),
        ("&lt;i&gt;Drum&lt;/i&gt;", "Drum"),
        ("<a_1><b_2>", "<a_1><b_2>"),  # semantic IDs are no tags
        ("I <3 drums", "I <3 drums"),
        ("Pen\u200b\ufeff\u00ad\u2060 Set\x00\x1b", "Pen Set"),
        ("\u202eneP\u202c \u200fx\u2066", "neP x"),
        ("Pen\u200dSet\u200c", "PenSet"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("\ud83d\ude00 \ud83d x \ude00", "😀 x"),
        ("10² ½ ™ ﬁ Ａ", "10² ½ ™ ﬁ Ａ"),  # NFC, not NFKC
    ],
)
def test_clean_title(title, expected):
    assert clean_title(title) == expected


DEBRIS = "& amp; &lt; <b > </b> b u #38; <script> \u200d \ud83d \ude00 \u0308".split(" ")
pieces = st.sampled_from([*DEBRIS, " "])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(st.characters(), max_size=30), st.lists(pieces, max_size=12).map("".join)))
def test_a_clean_title_is_clean(title):
    cleaned = clean_title(title)
    assert clean_title(cleaned) == cleaned
    assert cleaned.encode().decode() == cleaned  # every tokenizer and every file can hold it
    assert unicodedata.normalize("NFC", cleaned) == cleaned
    assert cleaned == " ".join(cleaned.split())


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda text: "&" not in text), st.integers(1, 4))
def test_escaping_changes_nothing(title, times):
    escaped = title
    for _ in range(times):
        escaped = html.escape(escaped)
    assert clean_title(escaped) == clean_title(title)


names = st.sampled_from(["Pen", "Pen Set", "Pen (2)", "Pen (X)", "Ink"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(names, st.sampled_from(["", "X", "2", "&amp;"])), min_size=1, max_size=8))
def test_distinct_titles_are_distinct_and_leave_unique_ones(rows):
    titles = {str(item): title for item, (title, _) in enumerate(rows)}
    brands = {str(item): brand for item, (_, brand) in enumerate(rows)}
    for distinct in (distinct_titles(titles), distinct_titles(titles, brands)):
        assert list(distinct) == list(titles)
        assert len(set(distinct.values())) == len(titles)
        for item, title in titles.items():
            assert distinct[item].startswith(title)
    alone = [item for item, title in titles.items() if list(titles.values()).count(title) == 1]
    assert all(distinct_titles(titles)[item].startswith(titles[item]) for item in alone)


def test_brand_comes_before_number():
    titles = {"a": "Pen", "b": "Pen", "c": "Pen", "d": "Pen", "e": "Ink"}
    assert distinct_titles(titles, {"b": "Lamy", "c": "Lamy", "e": "Lamy"}) == {
        "a": "Pen", "b": "Pen (Lamy)", "c": "Pen (Lamy) (2)", "d": "Pen (2)", "e": "Ink",
    }  # fmt: skip
    catalog = ItemCatalog.from_titles(titles).with_distinct_titles({"b": "Lamy"})
    assert catalog.texts == ["Pen", "Pen (Lamy)", "Pen (2)", "Pen (3)", "Ink"]
    tokenizer = catalog.build_tokenizer(vocab_size=280)
    trie = catalog.trie(tokenizer)
    assert all(trie.match(trie.sequence(item))[0] == [item] for item in trie.item_ids)


words = st.lists(st.sampled_from(["a", "bb", "(2)", "ccccc"]), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, min_size=1, max_size=8))
def test_short_titles_fit_and_still_differ(lists):
    titles = {str(item): " ".join(words) for item, words in enumerate(lists)}

    def count(texts):
        return list(map(len, texts))

    # Eight titles need one digit to be told apart, and the longest first word and it have nine characters
    short = shortened_titles(titles, count, 12)
    assert list(short) == list(titles)
    for item, title in titles.items():
        assert len(short[item]) <= 12
        assert short[item] == title if len(title) <= 12 else title.startswith(short[item].split(" (")[0])
        for other in titles:
            assert (short[item] == short[other]) == (title == titles[other])


def test_titles_of_many_tokens_are_refused_by_name_or_cut():
    titles = {"pen": "Pen", "saga": "saga " * 600, "song": "saga " * 600 + "end", "code": "QXZ" * 13}
    catalog = ItemCatalog.from_titles(titles)
    tokenizer = catalog.without_items(["code"]).build_tokenizer(vocab_size=280)
    with pytest.raises(ValueError, match=r"titles of 2 items have more than 512 tokens: \['saga', 'song'\]"):
        catalog.trie(tokenizer)
    with pytest.raises(ValueError, match=r"titles of 3 items have more than 30 tokens: \['saga', 'song', 'code'\]"):
        catalog.trie(tokenizer, max_title_tokens=30)
    with pytest.raises(ValueError, match=r"1 titles cannot be cut to 30 tokens, .*: \['code'\]"):
        catalog.with_short_titles(tokenizer, 30)
    short = catalog.without_items(["code"]).with_short_titles(tokenizer, 30)
    assert short.text("pen") == "Pen"
    assert re.fullmatch("(saga )+saga", short.text("saga"))
    assert re.fullmatch(r"(saga )+\(2\)", short.text("song"))
    assert short.trie(tokenizer, max_title_tokens=30).depth <= 31
    with pytest.raises(ValueError, match="holds no titles"):
        ItemCatalog.from_semantic_ids({"a": ["<a>"]}).with_short_titles(tokenizer, 3)


def test_titles_that_are_no_text_are_refused_by_name():
    with pytest.raises(ValueError, match=r"titles of 2 items are no text: \['b', 'c'\]"):
        ItemCatalog.from_titles({"a": "Pen", "b": None, "c": float("nan")})
    with pytest.raises(ValueError, match=r"nothing to name them by \(titles\): \['b', 'c'\]"):
        ItemCatalog.from_titles({"a": "Pen", "b": "<br>", "c": "\u200b"})
    with pytest.raises(ValueError, match="only 1 of them distinct"):
        ItemCatalog.from_titles({1: "Pen", "1": "Ink"})


def test_titles_that_hold_special_tokens_are_refused_by_name():
    catalog = ItemCatalog.from_titles({"pen": "Pen", "end": "The <eos>", "odd": "<unk> known", "None": "None"})
    with pytest.raises(
        ValueError, match=r"titles of 2 items hold special tokens .*: \['end', 'odd'\], the first is 'The <eos>'"
    ):
        catalog.trie(catalog.build_tokenizer(vocab_size=300))


def holds_no_special_token(title):
    return not any(token in title for token in ("<pad>", "<eos>", "<unk>"))


texts = st.text(st.characters(codec="utf-8"), max_size=20).map(clean_title).filter(bool).filter(holds_no_special_token)


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, min_size=1, max_size=8, unique=True))
def test_every_title_comes_back_from_its_tokens(found):
    catalog = ItemCatalog.from_titles(dict(enumerate(found)))
    tokenizer = catalog.build_tokenizer(vocab_size=300)
    trie = catalog.trie(tokenizer)
    sequences = [tuple(trie.sequence(item)) for item in catalog.item_ids]
    assert len(set(sequences)) == len(found)
    for item, title, sequence in zip(catalog.item_ids, found, sequences, strict=True):
        assert tokenizer.decode(sequence, skip_special_tokens=True) == title
        assert trie.match(sequence) == ([item], len(sequence))
