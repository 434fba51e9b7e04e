"""What the trie holds is what TRL makes of prompt and completion, for tokenizers of every kind."""

import pytest
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from ilrec_trl import ItemCatalog
from ilrec_trl.data.prompt_tokens import tokenize_completions


TITLES = {
    "pen": "Pen",
    "set": "Pen Set",
    "ten": "10 Pens (red)",
    "und": "Über-Stift",
    "ink": "ink 漢字",
    "q": '"Quill"',
}
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As of the first Mistral: the answer follows a space that the prompt does not hold
INSTRUCTIONS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|assistant|>"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
# The pattern of Llama 3 and Qwen, by which a word takes the mark before it along
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pattern=None):
    tokenizer = Tokenizer(models.BPE())
    first = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    # As in Llama 2 a line break is a token that joins no other
    return tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=[*SPECIAL, "\n"])


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL)


MAKERS = {
    "byte-level BPE": byte_level,
    "byte-level BPE by Llama 3's pattern": lambda: byte_level(LLAMA_3),
    "SentencePiece": metaspace,
    "WordPiece": word_piece,
}


def make_tokenizer(kind, template=CHATML):
    tokenizer, trainer = MAKERS[kind]()
    trainer.show_progress = False
    corpus = [f"{before}{title}" for title in TITLES.values() for before in ("", " ", "\n", ":", "Next: ")]
    tokenizer.train_from_iterator(corpus * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<s>")
    fast.chat_template = template
    return fast


def chat(text):
    return [{"role": "user", "content": text}]


def trl_tokens(tokenizer, prompt, tmp_path):
    """Input ids that SFTTrainer makes of each title after the prompt."""
    turn = {True: lambda title: title, False: lambda title: [{"role": "assistant", "content": title}]}
    make = turn[isinstance(prompt, str)]
    rows = Dataset.from_list([{"prompt": prompt, "completion": make(title)} for title in TITLES.values()])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    args = SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False)
    return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train_dataset["input_ids"]


WORK = [
    *[(kind, CHATML, prompt) for kind in MAKERS for prompt in (None, "Bought:\nPen\nPen Set\n", chat("Pen"))],
    *[(kind, INSTRUCTIONS, chat("Pen")) for kind in MAKERS],
    ("byte-level BPE", CHATML, "Next =\n\n"),
    ("WordPiece", CHATML, "Next: "),
]


@pytest.mark.parametrize(("kind", "template", "prompt"), WORK)
def test_the_trie_holds_the_tokens_that_trl_trains_on(kind, template, prompt, tmp_path):
    tokenizer = make_tokenizer(kind, template)
    trie = ItemCatalog.from_titles(TITLES).trie(tokenizer, prompt)
    for item, input_ids in zip(TITLES, trl_tokens(tokenizer, prompt or "Pen Set\n", tmp_path), strict=True):
        sequence = trie.sequence(item)
        last = len(input_ids) - 1 - input_ids[::-1].index(tokenizer.eos_token_id)  # ChatML closes with a line break
        assert input_ids[last + 1 - len(sequence) : last + 1] == sequence
    assert trie.match(trie.sequence("pen"))[0] == ["pen"]
    assert trie.match(trie.sequence("set"))[0] == ["set"]


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("byte-level BPE", "Next: "),  # " Pen" is one token
        ("byte-level BPE", "Next:"),  # so is ':"'
        ("byte-level BPE by Llama 3's pattern", "Next:"),  # ":Pen" is
        ("SentencePiece", "Next: "),
    ],
)
def test_a_token_across_the_border_is_refused(kind, prompt):
    with pytest.raises(ValueError, match=r"joins the end of the prompt 'Next: ?' with the start of \d items, such as"):
        ItemCatalog.from_titles(TITLES).trie(make_tokenizer(kind), prompt)


def test_a_template_that_never_ends_a_turn_is_refused():
    tokenizer = make_tokenizer("byte-level BPE", CHATML.replace("</s>", ""))
    with pytest.raises(ValueError, match="does not hold the end-of-sequence token '</s>'"):
        tokenize_completions(tokenizer, ["Pen"], chat("Pen"))


def test_chat_template_options_reach_the_template():
    """As Qwen 3 opens an answer, thinking or not."""
    thinking = "{% if not enable_thinking %}<s>{% endif %}"
    template = CHATML.replace("<|{{", "{% if m['role'] == 'assistant' %}<|assistant|>\n" + thinking + "{% else %}<|{{")
    template = template.replace("|>\n{{ m['content']", "|>\n{% endif %}{{ m['content']", 1)
    template = template.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n" + thinking + "{% endif %}")
    tokenizer = make_tokenizer("byte-level BPE", template)
    plain = tokenize_completions(tokenizer, ["Pen"], "\n")
    assert tokenize_completions(tokenizer, ["Pen"], chat("Pen"), {"enable_thinking": False}) == plain


def test_semantic_ids_after_any_prompt():
    catalog = ItemCatalog.from_semantic_ids({"lute": ["<a_1>", "<b_0>"], "harp": ["<a_0>", "<b_1>"]})
    for kind in MAKERS:
        tokenizer = make_tokenizer(kind)
        ids = dict(zip(catalog.tokens, catalog.add_tokens(tokenizer), strict=True))
        for prompt in (None, "Next: ", "Next:", "Next\n", "<a_0><b_1>", chat("Pen")):
            sequences = catalog.token_sequences(tokenizer, prompt)
            assert sequences == {"lute": [ids["<a_1>"], ids["<b_0>"]], "harp": [ids["<a_0>"], ids["<b_1>"]]}
