"""What fits: every row against a twin that tokenizes whole rows and drops one item at a time."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_trl.data.prompt_renderer import PromptRenderer
from ilrec_trl.data.prompt_tokens import tokenize_prompts
from ilrec_trl.data.prompts import next_item_dataset, sequence_dataset
from ilrec_trl.data.splits import NextItemExample, UserSequence
from ilrec_trl.items.item_catalog import ItemCatalog
from tests.references import naive_row_length, naive_shown, naive_windows


WORDS = ["pen", "Pen", "(2", "Pack)", "3.5mm", "Ø", "blue,", "&", "no.", "écru", "1/2-Inch", "!!", "x", "it's", "10%"]
GENERATOR = random.Random(0)
TITLES = ItemCatalog.from_titles(
    {str(n): " ".join(GENERATOR.choices(WORDS, k=GENERATOR.randint(1, 9))) for n in range(40)}
)
IDS = ItemCatalog.from_semantic_ids({str(n): [f"<a_{n % 7}>", f"<b_{n}>"] for n in range(40)})
# An item of another length, and one with much to say
UNEVEN = ItemCatalog.from_semantic_ids({str(n): [f"<a_{n}>"] * (1 + n % 5) for n in range(40)})
TOKENIZERS = {id(catalog): catalog.build_tokenizer(400) for catalog in (TITLES, IDS, UNEVEN)}
NUMBERED = "{% for item in history %}{{ 7 + loop.index }}. {{ item }}\n{% endfor %}Next:\n"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ '<|begin|>' }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
# As Qwen3's: the answer of a row to train on follows an empty thought, which the prompt holds only on demand
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|begin|>", "<|start|>", "<|end|>", "<|eot|>"]


def chat_tokenizer(catalog, chat_template):
    tokenizer = TITLES.build_tokenizer(400)
    tokenizer.add_tokens([*catalog.tokens, *MARKS], special_tokens=True)
    tokenizer.chat_template = chat_template
    return tokenizer


def row_length(renderer, variant=0, target=None):
    """Measures a history with a target; by default with the item of most tokens."""
    catalog, kwargs = renderer.targets or renderer.catalog, renderer.chat_template_kwargs

    def measure(history, target):
        prompt = renderer.as_prompt(renderer.render(history, variant))
        return naive_row_length(renderer.tokenizer, prompt, renderer.as_completion(catalog.text(target)), kwargs)

    if target is None:
        target = max(catalog.item_ids, key=lambda item: measure(["0"], item))
    return lambda history: measure(history, target)


def text_renderer(catalog, **options):
    return PromptRenderer(catalog, tokenizer=TOKENIZERS[id(catalog)], **options)


RENDERERS = {
    "titles": lambda **options: text_renderer(TITLES, **options),
    "end tokens": lambda **options: text_renderer(TITLES, separator="<eos>", **options),
    "semantic IDs": lambda **options: text_renderer(IDS, **options),
    "uneven": lambda **options: text_renderer(UNEVEN, **options),
    "instructions": lambda **options: text_renderer(TITLES, template="instructions", **options),
    "numbered": lambda **options: text_renderer(TITLES, template=NUMBERED, **options),
    "ChatML": lambda **options: PromptRenderer(
        TITLES, tokenizer=chat_tokenizer(TITLES, CHATML), conversational=True, system_prompt="Be brief.", **options
    ),
    "Llama": lambda **options: PromptRenderer(
        IDS, tokenizer=chat_tokenizer(IDS, LLAMA), conversational=True, template="instructions", **options
    ),
    "thinking": lambda **options: PromptRenderer(
        TITLES,
        tokenizer=chat_tokenizer(TITLES, THINKING),
        conversational=True,
        chat_template_kwargs={"enable_thinking": False},
        **options,
    ),
}
ITEM = st.integers(0, 39).map(str)
HISTORIES = st.lists(st.lists(ITEM, min_size=1, max_size=12), min_size=1, max_size=8)


@pytest.mark.parametrize("name", RENDERERS)
@settings(max_examples=8, deadline=None)
@given(histories=HISTORIES, target=ITEM, spare=st.integers(0, 90), max_history=st.integers(1, 12))
def test_rows_are_those_of_the_twin(name, histories, target, spare, max_history):
    shortest = row_length(RENDERERS[name]())
    # Room for any single item, and for some more
    max_length = max(shortest([item]) for item in map(str, range(40))) + spare
    renderer = RENDERERS[name](max_history=max_history, max_length=max_length)
    rows = next_item_dataset([NextItemExample("u", history, target) for history in histories], renderer)
    longest, own = row_length(renderer), row_length(renderer, target=target)
    for history, row in zip(histories, rows, strict=True):
        assert row["history"] == naive_shown(history, max_history, max_length, longest)
        assert row["history"] == history[len(history) - len(row["history"]) :]  # the newest, in order
        assert own(row["history"]) <= max_length
        assert row["prompt"] == renderer.as_prompt(renderer.render(row["history"]))
        assert row["completion"] == renderer.as_completion(renderer.target_texts[target])
    assert rows["prompt"][:] == renderer.prompts(histories)


@pytest.mark.parametrize("name", ["end tokens", "semantic IDs", "uneven"])
@settings(max_examples=15, deadline=None)
@given(items=st.lists(ITEM, min_size=2, max_size=30), spare=st.integers(0, 60), max_history=st.integers(1, 12))
def test_sequences_are_cut_as_the_twin_cuts_them(name, items, spare, max_history):
    shortest = row_length(RENDERERS[name]())
    max_length = max(shortest([item]) for item in map(str, range(40))) + spare
    renderer = RENDERERS[name](max_history=max_history, max_length=max_length)
    rows = sequence_dataset([UserSequence("u", items)], renderer)
    longest = row_length(renderer)
    expected = naive_windows(items, lambda history: len(naive_shown(history, max_history, max_length, longest)))
    assert list(zip(rows["history"], rows["item"], strict=True)) == expected
    assert [item for targets in rows["item"] for item in targets] == items[1:]
    for row in rows:
        assert naive_row_length(renderer.tokenizer, row["prompt"], row["completion"]) <= max_length
        # Up to each target the row is the prompt of the question for that target
        for place, target in enumerate(row["item"]):
            question = NextItemExample("u", row["history"] + row["item"][:place], target)
            asked = next_item_dataset([question], renderer)[0]
            assert (row["prompt"] + row["completion"]).startswith(asked["prompt"] + asked["completion"])
            assert asked["history"] == question.history


def test_sums_are_given_up_where_they_are_wrong_and_only_there():
    histories = [[str(n) for n in range(12)]] * 3
    for name, right in (("titles", True), ("instructions", True), ("Llama", True), ("numbered", False)):
        renderer = RENDERERS[name](max_length=200)
        renderer.prompts(histories)
        assert renderer.lengths[0].is_sum == right, name


def test_each_template_has_lengths_of_its_own():
    long = "A line of many words that stands before every single one of the items:\n{{ history | join('\n') }}\n"
    renderer = text_renderer(TITLES, template=["titles", long], max_length=120)
    examples = [NextItemExample("u", [str(n) for n in range(12)], "3")] * 20
    rows = next_item_dataset(examples, renderer, seed=0)
    for row in rows:
        variant = int(row["prompt"].startswith("A line"))
        assert row["history"] == naive_shown(examples[0].history, 20, 120, row_length(renderer, variant))
    assert len({len(history) for history in rows["history"]}) == 2


def test_a_target_that_fits_behind_no_history_is_refused_by_name():
    catalog = ItemCatalog.from_titles({"short": "Pen", "long": " ".join(["Pen"] * 30), "mean": " ".join(["Pen"] * 9)})
    tokenizer = catalog.build_tokenizer(300)
    renderer = PromptRenderer(catalog, tokenizer=tokenizer, max_length=60)
    length = row_length(renderer, target="long")(["mean"])
    assert length > 60
    good = NextItemExample("ann", ["long", "mean", "short"], "short")
    row = next_item_dataset([good], renderer)[0]
    # No room for the longest title behind anything, and yet a row whose own target fits behind one item
    assert row["history"] == ["short"]
    with pytest.raises(
        ValueError, match=rf"Row 1 \(user 'bob'\): item 'long' after .* \('mean'\) takes {length} tokens"
    ):
        next_item_dataset([good, NextItemExample("bob", ["short", "mean"], "long")], renderer)
    with pytest.raises(ValueError, match=rf"The sequence of user 'bob', place 2: item 'long' .* at least {length}"):
        sequence_dataset([UserSequence("bob", ["short", "mean", "long"])], renderer)


@pytest.mark.parametrize("chat_template", [CHATML, LLAMA])
def test_a_conversation_to_recommend_for_ends_as_in_training(chat_template):
    for catalog in (TITLES, IDS):
        tokenizer = chat_tokenizer(catalog, chat_template)
        renderer = PromptRenderer(catalog, tokenizer=tokenizer, conversational=True, system_prompt="Be brief.")
        row = next_item_dataset([NextItemExample("u", ["1", "2"], "3")], renderer)[0]
        [asked] = tokenize_prompts(tokenizer, renderer.prompts([["1", "2"]]))
        trained = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
        answer = tokenizer("\n" + catalog.text("3"))["input_ids"][1:]
        assert trained[: len(asked) + len(answer)] == asked + answer


def test_thinking_models_are_told_not_to_think():
    tokenizer = chat_tokenizer(TITLES, THINKING)
    with pytest.raises(ValueError, match=r"goes on after .*assistant\\n' with '<think>.*'enable_thinking': False"):
        PromptRenderer(TITLES, tokenizer=tokenizer, conversational=True)
    renderer = RENDERERS["thinking"]()
    row = next_item_dataset([NextItemExample("u", ["1"], "3")], renderer)[0]
    assert row["chat_template_kwargs"] == {"enable_thinking": False}


def test_conversations_of_several_targets_are_not_cut_by_tokens():
    renderer = PromptRenderer(TITLES, tokenizer=chat_tokenizer(TITLES, CHATML), conversational=True, max_length=200)
    with pytest.raises(ValueError, match="`max_length` does not count"):
        sequence_dataset([UserSequence("u", ["1", "2", "3"])], renderer)
