"""Shares in the rewards of targets that come again in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor


# Bytes of a target beside its shares: the key, its place, and their part of a dict that is two thirds full
_TARGET_BYTES = 49 + 32 + 104


class ShareCache:
    """
    The shares of the targets that came first, as many as a bound has room for, in memory of the host.

    Nothing is replaced: an epoch asks for every target once, in another order each time, so that no rule of
    replacement could find more of them than the share that there is room for.

    Args:
        mib (`float`):
            Bound in MiB, of shares and keys together; 0 keeps nothing.
    """

    def __init__(self, mib: float) -> None:
        self.room = int(mib * 2**20)  # bytes
        self.shares = torch.empty(self.room // 4)  # takes memory only where something is written
        self.used = 0
        self.places: dict[bytes, int] = {}

    @staticmethod
    def keys(values: Iterable[tuple], nodes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """
        What tells targets from others: their values of all columns, and the trie nodes of their positions, of which
        each target has as many of `nodes` as `lengths` says.
        """
        node_bytes, width = nodes.numpy().tobytes(), nodes.element_size()
        ends = [width * end for end in accumulate(lengths, initial=0)]
        return [
            hashlib.blake2b(repr(own).encode() + node_bytes[start:end], digest_size=16).digest()
            for own, (start, end) in zip(values, pairwise(ends), strict=True)
        ]

    def keep(self, keys: Sequence[bytes], shares: Sequence[Tensor]) -> None:
        """Keep the shares of some targets, on the host, while there is room."""
        for key, part in zip(keys, shares, strict=True):
            size = 4 * len(part) + _TARGET_BYTES
            if key not in self.places and size <= self.room:
                self.room -= size
                self.places[key] = self.used
                self.shares[self.used : self.used + len(part)] = part
                self.used += len(part)
