"""Tokenizers made from a catalogue alone, for small models trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


SPECIAL_TOKENS = ["<pad>", "<eos>", "<unk>"]


def semantic_id_tokenizer(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """Tokenizer with one entry for each of `tokens`, which may follow each other without a gap."""
    vocabulary = {token: token_id for token_id, token in enumerate([*SPECIAL_TOKENS, *tokens])}
    if len(vocabulary) != len(SPECIAL_TOKENS) + len(tokens):
        raise ValueError(f"Semantic-ID tokens must be distinct and other than {SPECIAL_TOKENS}.")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    tokenizer.decoder = decoders.Fuse()
    # As added tokens they are found anywhere in a text, whatever they look like.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return _wrap(tokenizer)


def title_tokenizer(titles: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocab_size` entries trained on `titles`; any text can be written in it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"Got vocab_size {vocab_size}, expected at least {smallest}: one entry a byte, and specials.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(titles, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    pad, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
    )
