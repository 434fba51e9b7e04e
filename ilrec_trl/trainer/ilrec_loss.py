"""ILRec's terms beside the cross-entropy of a batch: negatives are mined, then CPO, CPD and CRR are added up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..items.item_trie import ItemTrie
from .ilrec_config import ILRecConfig
from .losses import (
    collaborative_reward_loss,
    cross_layer_distillation_loss,
    cross_layer_preference_loss,
    negative_weights,
    self_hard_negatives,
)
from .targets import TargetPositions


@dataclass
class ILRecLoss:
    """
    The terms of ILRec beyond cross-entropy, for each target position. With a catalogue they are computed on the tokens
    of a position's level alone, with the normaliser of the whole vocabulary.

    Args:
        args ([`ILRecConfig`]): Selection, penalty, scope and temperature.
        cpo_beta, crr_weight (`float`): The weights in force, see [`ILRecConfig`].
        item_trie ([`ItemTrie`], *optional*): The catalogue.
        vocab_size (`int`): Size of the tokenizer. Further tokens of the model are padding.
        pad_token_id (`int`, *optional*): Never a negative.
        layers (`list[int]`): Indices of the intermediate layers, for the names of logged values.
    """

    args: ILRecConfig
    cpo_beta: float
    crr_weight: float
    item_trie: ItemTrie | None
    vocab_size: int
    pad_token_id: int | None
    layers: list[int]

    @property
    def by_level(self) -> bool:
        """Whether logits of the intermediate layers are those of the item tokens of a position's level alone."""
        args = self.args
        return self.item_trie is not None and args.restrict_to_items and args.layer_vocabulary == "items"

    def __call__(
        self,
        logits: Tensor,
        log_normaliser: Tensor,
        layer_logits: Tensor,
        tokens: Tensor | None,
        start: int,
        *,
        targets: TargetPositions,
        shares: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
            logits (`torch.Tensor` of shape `(n, V)`): Logits of the last layer at the target positions `start` to
                `start + n - 1`.
            log_normaliser (`torch.Tensor` of shape `(n,)`): Their logsumexp.
            layer_logits (`torch.Tensor` of shape `(K, n, R)`): Logits of the intermediate layers for `tokens`.
            tokens (`torch.Tensor` of shape `(R,)`, *optional*): Tokens that the losses are computed on. By default
                all, and R is V.
            start (`int`): Number of the first position in the batch.
            targets ([`TargetPositions`]): All positions of the batch.
            shares (`torch.Tensor` of shape `(E,)`, *optional*): Rewards of the continuations of all positions, see
                [`share_rewards`]. Needed with a `crr_weight`.

        Returns:
            `tuple`: terms to add to cross-entropy, `(n,)`, in nats, and values to log, `(n,)` each.
        """
        args, block = self.args, slice(start, start + len(logits))
        mean_logits = logits.detach().mean(-1) if args.cpo_penalty == "multiplicative" else None  # (n,), of all tokens
        logits = logits if tokens is None else logits.index_select(1, tokens)  # (n, R)
        target_ids = targets.token_indices[block].to(logits.device)  # (n,)
        continuations, rewards = self._look_up(targets, block, logits, shares)  # (n, R) each
        allowed = self.candidates(continuations, logits)
        negatives, ensemble = self.mine(layer_logits.detach(), logits, target_ids, allowed, start)
        cross_entropy = log_normaliser - logits.gather(1, target_ids[:, None]).squeeze(1)  # (n,)
        values, terms = {"cpo_loss": cross_entropy}, torch.zeros_like(log_normaliser)
        if self.cpo_beta > 0:
            values["cpo_loss"] = cross_layer_preference_loss(
                logits,
                target_ids,
                negative_weights(ensemble, negatives),
                beta=self.cpo_beta,
                penalty=args.cpo_penalty,
                log_normaliser=log_normaliser,
                mean_logits=mean_logits,
            )
            terms = terms + (values["cpo_loss"] - cross_entropy)
        with torch.set_grad_enabled(torch.is_grad_enabled() and args.cpd_weight > 0):
            values["cpd_loss"] = cross_layer_distillation_loss(layer_logits, logits)
        if args.cpd_weight > 0:
            terms = terms + args.cpd_weight * values["cpd_loss"]
        if self.crr_weight > 0:
            values["crr_loss"] = collaborative_reward_loss(
                logits,
                target_ids,
                negatives if args.crr_scope == "negatives" else continuations,
                rewards,
                temperature=args.crr_temperature,
                log_normaliser=log_normaliser,
            )
            terms = terms + self.crr_weight * values["crr_loss"]
        counts = negatives.sum(-1)  # (n,)
        values["negatives"] = counts
        values["negative_mass"] = ((logits.detach() - log_normaliser.detach()[:, None]).exp() * negatives).sum(-1)
        values["without_negatives"] = counts == 0
        for index, layer in zip(self.layers, layer_logits, strict=True):
            values[f"top1_layer_{index}"] = layer.argmax(-1) == target_ids
        return terms, {name: value.detach() for name, value in values.items()}

    def mine(
        self, layer_logits: Tensor, logits: Tensor, target_ids: Tensor, allowed: Tensor, start: int
    ) -> tuple[Tensor, Tensor]:
        """
        Find the negatives of a block of positions. A subclass may find them in another way.

        Args:
            layer_logits (`torch.Tensor` of shape `(K, n, R)`): Logits of the intermediate layers, without gradient.
            logits (`torch.Tensor` of shape `(n, R)`), target_ids (`torch.Tensor` of shape `(n,)`):
                Logits of the last layer, and the true next tokens.
            allowed (`torch.Tensor` of shape `(n, R)` or `(1, R)`): `True` where a token may be a negative.
            start (`int`): Number of the first position in the batch, which identifies the block.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: `True` on the negatives, `(n, R)`, and the mean logits `(1, n, R)`
            that weight them.
        """
        args = self.args
        ensemble = layer_logits.mean(0, keepdim=True)  # (1, n, R)
        negatives = self_hard_negatives(
            ensemble if args.negative_selection == "threshold" else layer_logits,
            logits,
            target_ids,
            selection=args.negative_selection,
            threshold=args.negative_threshold,
            top_k=args.negative_top_k,
            allowed=allowed,
        )
        return negatives, ensemble

    def _look_up(
        self, targets: TargetPositions, block: slice, logits: Tensor, shares: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """`True` on tokens that can follow in some item, and their rewards; both `(n, R)` or `None`."""
        if self.item_trie is None:
            return None, None
        edges = [indices.to(logits.device) for indices in targets.continuations(self.item_trie, block)]  # (E,)
        yes = edges[0].new_ones((), dtype=torch.bool)  # a Python value would have to be copied to the device
        continuations = torch.zeros_like(logits, dtype=torch.bool).index_put_(edges, yes)
        if shares is None:
            return continuations, None
        bounds = targets.edge_bounds
        shares = shares[bounds[block.start] : bounds[block.stop]].to(logits)
        return continuations, torch.zeros_like(logits).index_put_(edges, shares)

    def candidates(self, continuations: Tensor | None, logits: Tensor) -> Tensor:
        """Tokens that may be negatives, `(n, R)`: those that can follow in some item, or all the tokenizer knows."""
        if continuations is not None and self.args.restrict_to_items:
            return continuations
        candidates = torch.ones(1, logits.size(1), dtype=torch.bool, device=logits.device)
        candidates[:, self.vocab_size :] = False
        if self.pad_token_id is not None:
            candidates[:, self.pad_token_id] = False
        return candidates
