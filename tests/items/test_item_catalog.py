import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilrec_trl import ItemCatalog
from ilrec_trl.items.titles import clean_title


DATA = Path(__file__).parents[3] / "shared" / "data"
IDS = {"lute": ["<a_1>", "<b_0>"], "harp": ["<a_0>", "<b_1>"], "gong": ["<a_1>", "<b_0>"]}
TITLES = {"lute": "Oud &amp;  Lute\n", "harp": "Harp", "horn": "Harp, large", "gong": "Harp"}


@pytest.fixture
def semantic():
    return ItemCatalog.from_semantic_ids(IDS)


@pytest.fixture
def titles():
    return ItemCatalog.from_titles(TITLES)


def test_a_catalogue_of_semantic_ids(semantic):
    assert semantic.item_ids == ["lute", "harp", "gong"]
    assert semantic.texts == ["<a_1><b_0>", "<a_0><b_1>", "<a_1><b_0>"]
    assert semantic.text("harp") == "<a_0><b_1>"
    assert semantic.tokens == ["<a_0>", "<a_1>", "<b_0>", "<b_1>"]
    assert (semantic.kind, len(semantic), "gong" in semantic, "horn" in semantic) == ("semantic_ids", 3, True, False)


def test_titles_are_cleaned(titles):
    assert titles.texts == ["Oud & Lute", "Harp", "Harp, large", "Harp"]
    assert (titles.kind, titles.tokens, titles.semantic_ids) == ("titles", [], None)
    assert clean_title("  T&Uuml;RLEN\t2&nbsp;mm \n") == "TÜRLEN 2 mm"
    assert clean_title("u\u0308ber") == "über"
    assert clean_title("AT&T 5 < 7 > 3") == "AT&T 5 < 7 > 3"


def test_a_catalogue_may_hold_both(semantic):
    both = ItemCatalog(list(IDS), ["Lute", "Harp", "Gong"], list(IDS.values()))
    assert (both.kind, both.text("gong")) == ("titles", "Gong")
    assert both.as_kind("semantic_ids").texts == semantic.texts
    assert both.as_kind("semantic_ids").as_kind("titles").texts == both.texts
    with pytest.raises(ValueError, match="holds no titles"):
        semantic.as_kind("titles")
    assert ItemCatalog(list(IDS), semantic.texts, list(IDS.values())).kind == "semantic_ids"


def test_the_tokenizer_of_semantic_ids_is_exactly_their_tokens(semantic):
    tokenizer = semantic.build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == ["<pad>", "<eos>", "<unk>", *semantic.tokens]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("<a_1><b_0> <a_0>\n<b_1>")["input_ids"] == [4, 5, 3, 6]
    assert tokenizer.decode([4, 5, 1]) == "<a_1><b_0><eos>"
    assert tokenizer("<a_1>!<b_0>")["input_ids"] == [4, 2, 5]


def test_tokens_of_any_look_have_one_entry_each():
    catalog = ItemCatalog.from_semantic_ids({"x": ["1.1", "[2]"], "y": ["1.", "[2]"], "z": ["1.11", "?"]})
    assert catalog.trie(catalog.build_tokenizer()).depth == 2


def test_semantic_ids_of_one_length_end_by_themselves(semantic):
    trie = semantic.trie(semantic.build_tokenizer())
    assert trie.end_token_id is None
    assert trie.item_ids == ["harp", "lute", "gong"]
    assert [trie.sequence(item) for item in trie.item_ids] == [[3, 6], [4, 5], [4, 5]]
    uneven = ItemCatalog.from_semantic_ids({**IDS, "horn": ["<a_1>", "<b_0>", "<c_0>"]})
    trie = uneven.trie(uneven.build_tokenizer())
    assert trie.end_token_id == 1
    assert trie.sequence("lute") == [4, 5, 1]


def test_titles_end_with_the_end_of_sequence_token(titles):
    tokenizer = titles.build_tokenizer(vocab_size=300)
    trie = titles.trie(tokenizer)
    assert trie.end_token_id == tokenizer.eos_token_id
    assert trie.items([]) == trie.item_ids
    for item in trie.item_ids:
        assert tokenizer.decode(trie.sequence(item)) == titles.text(item) + "<eos>"
    assert set(trie.match(trie.sequence("gong"))[0]) == {"harp", "gong"}


def test_the_title_tokenizer_is_deterministic_and_reads_any_text(titles):
    tokenizer = titles.build_tokenizer(vocab_size=280)
    assert tokenizer.get_vocab() == titles.build_tokenizer(vocab_size=280).get_vocab()
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<unk>"]) == [0, 1, 2]
    text = " Über – 漢字\n\n🎸 <eos>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    with pytest.raises(ValueError, match="at least 259"):
        titles.build_tokenizer(vocab_size=100)


def test_a_completion_is_tokenized_as_in_its_prompt(titles):
    """A tokenizer that opens every text with a space must not do so for a title after a prompt's line break."""
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, "\n": 3, "Harp": 4, "▁Harp": 5, "Oud": 6, "&": 7, "Lute": 8}
    vocabulary |= {",": 9, "large": 10, "▁\n": 11}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    prompt, sequence = "Harp\n", titles.token_sequences(tokenizer)["harp"]
    assert tokenizer("Harp")["input_ids"] == [5]
    assert sequence == [4]
    assert tokenizer(prompt + "Harp")["input_ids"] == tokenizer(prompt)["input_ids"] + sequence


def test_add_tokens_grows_tokenizer_and_model(semantic, titles):
    tokenizer = titles.build_tokenizer(vocab_size=300)
    entries = len(tokenizer)
    with pytest.raises(ValueError, match=r"semantic ID \['<a_1>', '<b_0>'\] of item 'lute'.*add_tokens"):
        semantic.trie(tokenizer)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=entries, **sizes))
    token_ids = semantic.add_tokens(tokenizer, model)
    assert token_ids == [entries, entries + 1, entries + 2, entries + 3]
    assert (
        model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == len(tokenizer) == entries + 4
    )
    assert semantic.add_tokens(tokenizer, model) == token_ids  # nothing is added twice
    assert len(tokenizer) == entries + 4
    assert semantic.trie(tokenizer).sequence("lute") == [entries + 1, entries + 2]
    assert tokenizer("Harp<a_0><b_0>")["input_ids"][-2:] == [entries, entries + 2]

    model.resize_token_embeddings(400)  # spare rows are kept
    semantic.add_tokens(tokenizer, model)
    assert model.get_input_embeddings().weight.shape[0] == 400


def test_a_tokenizer_with_unknown_tokens_is_refused(semantic):
    other = ItemCatalog.from_semantic_ids({"lute": ["<a_1>", "<b_1>"], "harp": ["<a_0>", "<b_1>"]})
    with pytest.raises(ValueError, match=r"reads the semantic ID.*'lute'.*<unk>"):
        semantic.token_sequences(other.build_tokenizer())


def test_titles_need_an_end_of_sequence_token(titles):
    tokenizer = titles.build_tokenizer(vocab_size=300)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"Set `tokenizer.eos_token`"):
        titles.trie(tokenizer)


@pytest.mark.parametrize("fixture", ["semantic", "titles"])
def test_save_and_load(fixture, request, tmp_path):
    catalog = request.getfixturevalue(fixture)
    catalog.save(tmp_path / "catalog")
    loaded = ItemCatalog.load(tmp_path / "catalog")
    assert vars(loaded) == vars(catalog)
    (tmp_path / "catalog" / "catalog.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0, expected 1"):
        ItemCatalog.load(tmp_path / "catalog")


def write(path, content):
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.mark.parametrize("names", [("index.json", "item.json.gz"), ("Arts.index.json.gz", "Arts.item.json")])
def test_from_lc_rec(names, tmp_path):
    write(tmp_path / names[0], {"0": IDS["lute"], "1": IDS["harp"]})
    with pytest.raises(FileNotFoundError, match=r"no item.json .*which titles need"):
        ItemCatalog.from_lc_rec(tmp_path, kind="titles")
    assert ItemCatalog.from_lc_rec(tmp_path).text("0") == "<a_1><b_0>"
    write(tmp_path / names[1], {"0": {"title": "Lute &amp; bow", "brand": "x"}, "1": {"title": "Harp"}})
    titles = ItemCatalog.from_lc_rec(tmp_path, kind="titles")
    assert titles.texts == ["Lute & bow", "Harp"]
    assert (
        titles.as_kind("semantic_ids").texts == ItemCatalog.from_lc_rec(tmp_path).texts == ["<a_1><b_0>", "<a_0><b_1>"]
    )
    write(tmp_path / "Other.item.json", {})
    write(tmp_path / "More.item.json", {})
    if names[1].startswith("Arts"):
        with pytest.raises(ValueError, match="several files"):
            ItemCatalog.from_lc_rec(tmp_path, kind="titles")


def test_a_title_that_is_missing_is_refused_only_where_titles_are_used(tmp_path):
    write(tmp_path / "index.json", {"0": IDS["lute"], "1": IDS["harp"]})
    write(tmp_path / "item.json", {"0": {"title": "Lute"}, "1": {"brand": "no title"}})
    with pytest.raises(ValueError, match=r"1 items have nothing to name them by \(titles\): \['1'\]"):
        ItemCatalog.from_lc_rec(tmp_path, kind="titles")
    assert len(ItemCatalog.from_lc_rec(tmp_path)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "empty catalogue"),
        ((["a"],), "neither texts nor semantic IDs"),
        ((["a", "a"], ["x", "y"]), "only 1 of them distinct"),
        ((["a", "b"], ["x"]), "2 item ids and 1 titles"),
        ((["a"], None, [["<a_1>"], ["<a_2>"]]), "1 item ids and 2 semantic IDs"),
        ((["a", "b"], None, [["<a_1>"], []]), r"nothing to name them by \(semantic_ids\): \['b'\]"),
        ((["a", "b"], ["x", " "]), r"nothing to name them by \(titles\): \['b'\]"),
    ],
)
def test_what_cannot_be_a_catalogue_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ItemCatalog(*arguments)
    catalog = ItemCatalog(["a"], ["x"])
    with pytest.raises(ValueError, match="Got item 'b'"):
        catalog.text("b")


@pytest.mark.parametrize(
    ("name", "kind", "depth"), [("instruments", "semantic_ids", 4), ("industrial", "titles", None)]
)
def test_real_catalogues(name, kind, depth):
    if not (DATA / name).exists():
        pytest.skip(f"real data not found: {DATA / name}")
    catalog = ItemCatalog.from_lc_rec(DATA / name, kind)
    tokenizer = catalog.build_tokenizer()
    trie = catalog.trie(tokenizer)
    assert set(trie.item_ids) == set(catalog.item_ids)
    assert depth is None or trie.depth == depth
    for item in catalog.item_ids[::100]:
        tokens = trie.sequence(item)
        assert item in trie.match(tokens)[0]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == catalog.text(item)
