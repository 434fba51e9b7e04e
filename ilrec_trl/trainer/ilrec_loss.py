"""What ILRec adds to the cross-entropy of a batch: negatives are mined, then CPO, CPD and CRR put together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..items.item_trie import ItemTrie
from ..items.trie_arrays import check_item_scores
from .ilrec_config import ILRecConfig
from .losses import (
    collaborative_reward_loss,
    cross_layer_distillation_loss,
    cross_layer_preference_loss,
    negative_weights,
    self_hard_negatives,
)
from .target_items import target_prefixes


@dataclass
class TargetPositions:
    """
    What the losses know about the N target positions of a batch, in row-major order.

    Args:
        mask (`torch.Tensor` of shape `(B, S - 1)`):
            `True` where the next token belongs to a target item.
        target_ids (`torch.Tensor` of shape `(N,)`):
            The next tokens.
        nodes (`torch.Tensor` of shape `(N,)`, *optional*):
            Trie node of each position's prefix, with an item trie.
        items (`torch.Tensor` of shape `(N,)`):
            0-based number of the target item in the batch.
    """

    mask: Tensor
    target_ids: Tensor
    nodes: Tensor | None
    items: Tensor

    @classmethod
    def from_batch(
        cls, input_ids: Tensor, labels: Tensor, target_items: Tensor | None, item_trie: ItemTrie | None
    ) -> TargetPositions:
        """
        Args:
            input_ids, labels (`torch.Tensor` of shape `(B, S)`):
                Tokens and labels of the batch.
            target_items (`torch.Tensor` of shape `(B, S)`, *optional*):
                Numbers as [`DataCollatorForItemCompletion`] gives them; by default every token with a label is one.
            item_trie ([`ItemTrie`], *optional*):
                The catalogue.
        """
        if target_items is None:
            target_items = (labels != -100).long()  # (B, S)
        if item_trie is not None and item_trie.end_token_id is None:
            target_items = target_items.clamp(min=0)  # an end that is no part of the items is plain text
        # The first token of a row is never predicted, and TRL masks that of each sequence of a padding-free row; both
        # stand before the tokens that follow them in their item all the same
        chosen = (target_items != 0) & (labels != -100)  # (B, S)
        chosen[:, 0] = False
        nodes = None
        if item_trie is not None:
            trie = item_trie.to(labels.device)
            prefixes = target_prefixes(input_ids, target_items, trie.depth)[chosen[target_items != 0]]
            nodes = trie.locate(prefixes)  # (N,)
            strays = (trie.child(nodes, labels[chosen]) < 0).sum()
            if strays:
                raise ValueError(
                    f"{int(strays)} of {len(nodes)} target tokens of the batch are in no item of `item_trie`. Let the "
                    "trainer prepare the data set (no `skip_prepare_dataset`), or give its rows a `target_items` "
                    "column that numbers their items, see `DataCollatorForItemCompletion`."
                )
        return cls(chosen[:, 1:], labels[chosen], nodes, target_items[chosen].abs() - 1)


@dataclass
class TokenRewards:
    """
    Shares of the continuations of N target positions in their prefix's reward mass: `q_t` of METHOD, ragged.

    Args:
        positions, tokens, shares (`torch.Tensor` of shape `(E,)`):
            Position, ascending, token and share of each continuation.
    """

    positions: Tensor
    tokens: Tensor
    shares: Tensor

    @classmethod
    def from_scores(cls, item_scores: Tensor, targets: TargetPositions, item_trie: ItemTrie) -> TokenRewards:
        """From scores `(T, I)` of every item for every target item of the batch."""
        nodes = targets.nodes.to(item_scores.device)
        rows = check_item_scores(item_scores, len(item_trie), len(nodes), targets.items)
        return cls(*item_trie.to(item_scores.device).arrays.child_shares(item_scores, nodes, rows))

    def dense(self, start: int, count: int, vocab_size: int) -> Tensor:
        """Rewards `(count, V)` of the positions from `start` on, float32."""
        bounds = torch.searchsorted(self.positions, self.positions.new_tensor([start, start + count])).tolist()
        edges = slice(*bounds)
        rewards = torch.zeros(count, vocab_size, dtype=torch.float32, device=self.positions.device)
        rewards[self.positions[edges] - start, self.tokens[edges]] = self.shares[edges].float()
        return rewards


@dataclass
class ILRecLoss:
    """
    The terms of ILRec beyond cross-entropy, for each target position.

    Args:
        args ([`ILRecConfig`]):
            Selection, penalty, scope and temperature.
        cpo_beta, crr_weight (`float`):
            The weights in force, see [`ILRecConfig`].
        item_trie ([`ItemTrie`], *optional*):
            The catalogue.
        vocab_size (`int`):
            Tokens that the tokenizer knows; the rest of the model's vocabulary is padding.
        pad_token_id (`int`, *optional*):
            Never a negative.
        layers (`list[int]`):
            Indices of the intermediate layers, for the names of what is logged.
    """

    args: ILRecConfig
    cpo_beta: float
    crr_weight: float
    item_trie: ItemTrie | None
    vocab_size: int
    pad_token_id: int | None
    layers: list[int]

    def __call__(
        self,
        logits: Tensor,
        layer_logits: Tensor,
        targets: TargetPositions,
        rewards: TokenRewards | None = None,
        start: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            logits (`torch.Tensor` of shape `(n, V)`):
                Logits of the last layer at the target positions `start` to `start + n - 1`.
            layer_logits (`torch.Tensor` of shape `(K, n, V)`):
                Logits of the intermediate layers.
            targets ([`TargetPositions`]):
                All positions of the batch.
            rewards ([`TokenRewards`], *optional*):
                Those of all positions; needed where `crr_weight` is above 0.
            start (`int`, *optional*, defaults to `0`):
                First of the positions.

        Returns:
            `tuple`: the terms, `(n,)`, in nats, to be added to cross-entropy; and values to log, `(n,)` each.
        """
        args, block = self.args, slice(start, start + len(logits))
        target_ids = targets.target_ids.to(logits.device)[block]
        nodes = None if targets.nodes is None else targets.nodes.to(logits.device)[block]
        continuations, candidates = self.candidates(nodes, logits)
        ensemble = layer_logits.detach().mean(0, keepdim=True)  # (1, n, V)
        negatives = self_hard_negatives(
            ensemble if args.negative_selection == "threshold" else layer_logits,
            logits,
            target_ids,
            selection=args.negative_selection,
            threshold=args.negative_threshold,
            top_k=args.negative_top_k,
            allowed=candidates,
        )
        weights = negative_weights(ensemble, negatives)
        cross_entropy = nn.functional.cross_entropy(logits, target_ids, reduction="none")  # (n,)
        terms = torch.zeros_like(cross_entropy)
        if self.cpo_beta > 0:
            preference = cross_layer_preference_loss(
                logits, target_ids, weights, beta=self.cpo_beta, penalty=args.cpo_penalty
            )
            terms = terms + (preference - cross_entropy)
        values = {"cpo_loss": cross_entropy.detach() + terms.detach()}
        with torch.set_grad_enabled(torch.is_grad_enabled() and args.cpd_weight > 0):
            values["cpd_loss"] = cross_layer_distillation_loss(layer_logits, logits)
        if args.cpd_weight > 0:
            terms = terms + args.cpd_weight * values["cpd_loss"]
        if self.crr_weight > 0:
            beside = negatives if args.crr_scope == "negatives" else continuations
            values["crr_loss"] = collaborative_reward_loss(
                logits,
                target_ids,
                beside,
                rewards.dense(start, len(logits), logits.size(1)),
                temperature=args.crr_temperature,
            )
            terms = terms + self.crr_weight * values["crr_loss"]
        counts = negatives.sum(-1)  # (n,)
        values["negatives"] = counts
        values["negative_mass"] = (logits.detach().softmax(-1) * negatives).sum(-1)
        values["without_negatives"] = counts == 0
        for index, layer in zip(self.layers, layer_logits, strict=True):
            values[f"top1_layer_{index}"] = layer.argmax(-1) == target_ids
        return terms, {name: value.detach() for name, value in values.items()}

    def candidates(self, nodes: Tensor | None, logits: Tensor) -> tuple[Tensor | None, Tensor]:
        """Tokens that can follow in some item, `(n, V)` or `None` without a trie, and those that may be negatives."""
        vocab_size, device = logits.size(1), logits.device
        continuations = None
        if self.item_trie is not None:
            continuations = self.item_trie.to(device).allowed_mask(nodes, vocab_size)  # (n, V)
            if self.args.restrict_to_items:
                return continuations, continuations
        candidates = torch.ones(1, vocab_size, dtype=torch.bool, device=device)
        candidates[:, self.vocab_size :] = False
        if self.pad_token_id is not None:
            candidates[:, self.pad_token_id] = False
        return continuations, candidates
