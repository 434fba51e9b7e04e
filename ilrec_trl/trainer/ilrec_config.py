"""Configuration of [`ILRecTrainer`]."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from ._trl import get_config_model_id


@dataclass
class ILRecConfig(SFTConfig):
    r"""
    Configuration of the [`ILRecTrainer`]: every field of [`~trl.SFTConfig`], and those of ILRec
    (https://huggingface.co/papers/2602.17410). With `cpo_beta`, `cpd_weight` and `crr_weight` at 0 training is SFT.

    Parameters:
        intermediate_layers (`int`, `list[int]` or `str`, *optional*, defaults to `"auto"`): Decoder layers that
            negatives are mined from. An integer n selects the n layers before the last. A list holds 0-based indices,
            negative ones from the end; the last layer is not allowed. `"auto"` selects three layers, or fewer in a
            model of less than four.
        negative_selection (`str`, *optional*, defaults to `"threshold"`): `"threshold"` (the paper): a token is a
            negative if the layers give it at least `negative_threshold` times the probability of the target.
            `"top_k"`: each layer's `negative_top_k` most probable tokens.
        negative_threshold (`float`, *optional*, defaults to `0.8`): The paper's alpha, at least 0.
        negative_top_k (`int`, *optional*, defaults to `5`): Negatives of each layer with `negative_selection="top_k"`.
        restrict_to_items (`bool`, *optional*, defaults to `True`): Mine only among the tokens that can follow the
            target's prefix in some item. Used with an `item_trie`.
        layer_vocabulary (`str`, *optional*, defaults to `"items"`): Tokens over which the distributions of the
            intermediate layers are taken, and that of the last layer where it is compared with them. `"items"`: tokens
            of the catalogue at the position's level (at all levels, if levels share tokens), so that only their rows
            of the head are multiplied. `"all"` (the paper): the whole vocabulary. Without an `item_trie` or
            `restrict_to_items` it is always `"all"`.
        cpo_beta (`float`, *optional*): Strength of the penalty on negatives. Defaults to 3 when negatives are mined
            among the continuations of an `item_trie`, and to 1 otherwise.
        cpo_penalty (`str`, *optional*, defaults to `"additive"`): `"additive"` or `"multiplicative"`, see
            [`cross_layer_preference_loss`].
        cpd_weight (`float`, *optional*, defaults to `0.05`): Weight of the distillation of the intermediate layers
            from the last one (the paper's lambda).
        crr_weight (`float`, *optional*): Weight of the collaborative rewards (the paper's mu). Defaults to 3 with a
            `reward_func`, and to 0 without.
        crr_scope (`str`, *optional*, defaults to `"prefix"`): Tokens that share the reward. `"negatives"` (the paper):
            the target and its negatives. `"prefix"`: all continuations of the prefix.
        crr_temperature (`float`, *optional*, defaults to `1.0`): Temperature of the rewards, above 0; lower is
            sharper.
        max_logits_mib (`float`, *optional*, defaults to `256`): Budget in MiB for float32 logits of all layers. If the
            positions with a label need more, they are computed in blocks, whose logits are computed again in the
            backward pass. Results do not change.
        reward_cache_mib (`float`, *optional*, defaults to `512`): Budget in MiB of host memory, for each process, for
            the rewards of targets: about 1 KiB a target with 256 codes a level. Cached targets are not scored again in
            later epochs. Used if the reward function is `is_fixed`, see [`RewardFunc`]; 0 turns the cache off.
    """

    # `HfArgumentParser` takes the first member beside `str` as the type of the command-line flag
    intermediate_layers: int | str | list[int] = field(
        default="auto",
        metadata={
            "help": "Decoder layers that negatives are mined from: n for the n layers before the last, a list of "
            "0-based indices (in a YAML file), or 'auto' for three (fewer in a model of less than four layers)."
        },
    )
    negative_selection: str = field(
        default="threshold", metadata={"help": "How negatives are selected.", "choices": ["threshold", "top_k"]}
    )
    negative_threshold: float = field(
        default=0.8,
        metadata={"help": "A negative has at least this fraction of the target's probability (the paper's alpha)."},
    )
    negative_top_k: int = field(
        default=5, metadata={"help": "Negatives of each layer with negative_selection='top_k'."}
    )
    restrict_to_items: bool = field(
        default=True, metadata={"help": "Mine only among the continuations that the catalogue allows."}
    )
    layer_vocabulary: str = field(
        default="items",
        metadata={
            "help": "Tokens over which distributions of the intermediate layers are taken: tokens of the catalogue at "
            "the position's level, or all.",
            "choices": ["items", "all"],
        },
    )
    cpo_beta: float | None = field(
        default=None,
        metadata={"help": "Strength of the penalty on negatives. Defaults to 3 with an item trie, 1 without."},
    )
    cpo_penalty: str = field(
        default="additive", metadata={"help": "Form of the penalty.", "choices": ["additive", "multiplicative"]}
    )
    cpd_weight: float = field(
        default=0.05, metadata={"help": "Weight of the cross-layer distillation (the paper's lambda)."}
    )
    crr_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the collaborative rewards (the paper's mu). Defaults to 3 with a reward."},
    )
    crr_scope: str = field(
        default="prefix", metadata={"help": "Tokens that share the reward.", "choices": ["negatives", "prefix"]}
    )
    crr_temperature: float = field(default=1.0, metadata={"help": "Temperature of the rewards."})
    max_logits_mib: float = field(
        default=256.0, metadata={"help": "Budget in MiB for logits; positions that need more are computed in blocks."}
    )
    reward_cache_mib: float = field(
        default=512.0, metadata={"help": "Budget in MiB for cached rewards of targets, with a fixed reward function."}
    )

    @classmethod
    def from_args(cls, args: Any, model: Any) -> ILRecConfig:
        """
        The configuration from whatever SFTTrainer accepts as `args`: `None`, [`~transformers.TrainingArguments`] or
        [`~trl.SFTConfig`], which get ILRec's defaults. Without arguments the output folder is named after `model`.
        """
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            return cls(f"{name.split('/')[-1]}-ILRec")
        if isinstance(args, cls):
            return args
        if isinstance(args, SFTConfig):
            # A copy keeps what was set up or changed after construction
            promoted = copy.copy(args)
            promoted.__class__ = cls
            for own in dataclasses.fields(cls)[len(dataclasses.fields(SFTConfig)) :]:
                setattr(promoted, own.name, getattr(args, own.name, own.default))
            return promoted
        if isinstance(args, TrainingArguments):
            return cls(**{own.name: getattr(args, own.name) for own in dataclasses.fields(args) if own.init})
        raise TypeError(
            f"`args` must be an `ILRecConfig`, an `SFTConfig` or `TrainingArguments`, got `{type(args).__name__}`. "
            "Pass `ILRecConfig(output_dir=..., ...)`."
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.intermediate_layers = _parse_layers(self.intermediate_layers)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        for name in ("negative_threshold", "cpo_beta", "cpd_weight", "crr_weight", "reward_cache_mib"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")
        if not (math.isfinite(self.crr_temperature) and self.crr_temperature > 0):
            raise ValueError(f"`crr_temperature` must be a finite number above 0, got {self.crr_temperature!r}.")
        if not self.max_logits_mib > 0:
            raise ValueError(f"`max_logits_mib` must be a number of MiB above 0, got {self.max_logits_mib!r}.")
        if self.negative_top_k < 1:
            raise ValueError(f"`negative_top_k` must be at least 1, got {self.negative_top_k!r}.")


_CHOICES = {
    "layer_vocabulary": ("items", "all"),
    "negative_selection": ("threshold", "top_k"),
    "cpo_penalty": ("additive", "multiplicative"),
    "crr_scope": ("negatives", "prefix"),
}


def _parse_layers(layers: int | str | list[int]) -> int | str | list[int]:
    """Read layers as a YAML file or a command line gives them."""
    if isinstance(layers, str) and layers != "auto":
        try:
            layers = json.loads(layers)
        except json.JSONDecodeError:
            pass
    is_count = isinstance(layers, int) and not isinstance(layers, bool) and layers >= 1
    is_list = isinstance(layers, list) and layers and all(type(layer) is int for layer in layers)
    if layers != "auto" and not is_count and not is_list:
        raise ValueError(
            "`intermediate_layers` must be a count of at least 1, a non-empty list of layer indices, or 'auto', got "
            f"{layers!r}."
        )
    return layers
