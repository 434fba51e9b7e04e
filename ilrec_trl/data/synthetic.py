"""A small generated music store: item families, titles, semantic IDs, and customers whose tastes drift."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from .interactions import Interactions


# Each family and those a customer is drawn to next; the most bought come first.
_FAMILIES = {
    "Acoustic Guitar": ("Guitar Strings", "Capo", "Tuner"),
    "Electric Guitar": ("Amplifier", "Guitar Strings", "Effects Pedal"),
    "Guitar Strings": ("Guitar Picks", "Capo"),
    "Amplifier": ("Instrument Cable", "Effects Pedal"),
    "Tuner": ("Guitar Picks", "Guitar Strings"),
    "Capo": ("Guitar Picks", "Acoustic Guitar"),
    "Keyboard": ("Keyboard Stand", "Sustain Pedal"),
    "Drum Kit": ("Drum Sticks", "Cymbal"),
    "Microphone": ("Microphone Stand", "Headphones"),
    "Violin": ("Rosin", "Violin Bow"),
    "Effects Pedal": ("Instrument Cable", "Electric Guitar"),
    "Instrument Cable": ("Amplifier", "Microphone"),
    "Guitar Picks": ("Acoustic Guitar", "Electric Guitar"),
    "Drum Sticks": ("Cymbal", "Drum Kit"),
    "Keyboard Stand": ("Headphones", "Keyboard"),
    "Microphone Stand": ("Instrument Cable", "Microphone"),
    "Violin Bow": ("Rosin", "Violin"),
    "Cymbal": ("Drum Sticks", "Headphones"),
    "Sustain Pedal": ("Headphones", "Keyboard Stand"),
    "Headphones": ("Microphone", "Keyboard"),
    "Rosin": ("Violin", "Violin Bow"),
}
_BRANDS = ("Aldine", "Brisk", "Corvale", "Dovett", "Elmry", "Farrow")
_FINISHES = ("Walnut", "Ivory", "Midnight", "Copper", "Cherry", "Sage", "Amber", "Slate")

_STAY = 0.6  # chance that the next purchase is of the same family
_FOLLOW = 0.5  # chance, when staying, to take the item next in the catalogue's line
_LOYALTY = 8.0  # how many times likelier a customer's own brand is than another
_DAY = 86_400.0  # seconds


class GeneratedStore(NamedTuple):
    """
    What [`generate_store`] returns.

    Attributes:
        interactions ([`Interactions`]): Purchases with timestamps in seconds.
        titles (`dict[str, str]`): Title of every item, for example `"Brisk Capo Amber 2"`; all differ.
        semantic_ids (`dict[str, list[str]]`): Three tokens of every item: its family, its brand, its place among the
            family's items of that brand; all differ. Items in the same order as in `titles`.
    """

    interactions: Interactions
    titles: dict[str, str]
    semantic_ids: dict[str, list[str]]


@dataclass(frozen=True)
class _Item:
    item_id: str
    family: str
    brand: str
    number: int  # place in the line of one family and brand
    popularity: float


def generate_store(
    seed: int = 0, num_users: int = 2000, num_items: int = 300, mean_length: float = 8.0
) -> GeneratedStore:
    """
    Draw a catalogue and the purchases of its customers.

    Every customer has a favourite brand and a current family of items. From one purchase to the next the customer
    stays in the family, often taking the next model of the line just bought, or drifts to a family that goes with it
    (from guitars to strings, from strings to picks). Nothing is bought twice. The order of purchases thus tells far
    more about the next one than popularity does.

    Args:
        seed (`int`, *optional*, defaults to `0`): The same seed gives the same store.
        num_users (`int`, *optional*, defaults to `2000`): Number of customers.
        num_items (`int`, *optional*, defaults to `300`): Number of items, at least 42: 2 a family.
        mean_length (`float`, *optional*, defaults to `8.0`): Mean number of purchases of a customer; nobody has fewer
            than 5 or more than 4 times the mean.

    Returns:
        [`GeneratedStore`]: Interactions, titles and semantic IDs.

    Raises:
        ValueError: For fewer than 42 items, no users, or a mean below 5 or above a quarter of the items.

    Example:

    ```python
    >>> store = generate_store(seed=0, num_users=3, num_items=60)
    >>> len(store.interactions), len(store.titles)
    (3, 60)

    ```
    """
    if num_items < 2 * len(_FAMILIES):
        raise ValueError(f"Got num_items={num_items}; expected at least {2 * len(_FAMILIES)}, 2 for each family.")
    if num_users < 1:
        raise ValueError(f"Got num_users={num_users}; expected at least 1.")
    if not 5 <= mean_length <= num_items / 4:
        raise ValueError(f"Got mean_length={mean_length}; expected 5 to {num_items / 4}, a quarter of the items.")
    chance = random.Random(seed)
    items = _draw_items(chance, num_items)
    by_family: dict[str, list[_Item]] = {family: [] for family in _FAMILIES}
    for item in items:
        by_family[item.family].append(item)
    users, sequences, timestamps = [], [], []
    for user in range(num_users):
        length = (
            min(5 + int(chance.expovariate(1 / (mean_length - 4.5))), int(4 * mean_length)) if mean_length > 5 else 5
        )
        users.append(f"u{user}")
        sequences.append(_draw_purchases(chance, by_family, length))
        timestamps.append(_draw_times(chance, length))
    families, brands = list(_FAMILIES), list(_BRANDS)
    return GeneratedStore(
        Interactions(users, sequences, timestamps),
        {item.item_id: _title(item) for item in items},
        {
            item.item_id: [
                f"<a_{families.index(item.family)}>",
                f"<b_{brands.index(item.brand)}>",
                f"<c_{item.number}>",
            ]
            for item in items
        },
    )


def _draw_items(chance: random.Random, num_items: int) -> list[_Item]:
    items = []
    in_line: dict[tuple[str, str], int] = {}
    families = list(_FAMILIES)
    for index in range(num_items):
        family = families[index % len(families)]
        brand = chance.choice(_BRANDS)
        number = in_line.get((family, brand), 0)
        in_line[family, brand] = number + 1
        items.append(_Item(f"i{index}", family, brand, number, popularity=chance.paretovariate(1.5)))
    return items


def _title(item: _Item) -> str:
    finish = _FINISHES[item.number % len(_FINISHES)]
    return f"{item.brand} {item.family} {finish} {item.number // len(_FINISHES) + 1}"


def _draw_purchases(chance: random.Random, by_family: dict[str, list[_Item]], length: int) -> list[str]:
    families = list(by_family)
    # The families at the head of the list sell most to new customers.
    family = chance.choices(families, weights=[1 / (rank + 1) for rank in range(len(families))])[0]
    brand = chance.choice(_BRANDS)
    bought: dict[str, _Item] = {}
    last: _Item | None = None
    while len(bought) < length:
        if last is not None and chance.random() >= _STAY:
            family = chance.choice(_FAMILIES[family])
        on_offer = [item for item in by_family[family] if item.item_id not in bought]
        if not on_offer:  # everything of this family is bought
            family = chance.choice(families)
            continue
        following = [
            item
            for item in on_offer
            if last is not None and (item.family, item.brand, item.number) == (family, last.brand, last.number + 1)
        ]
        if following and chance.random() < _FOLLOW:
            last = following[0]
        else:
            weights = [item.popularity * (_LOYALTY if item.brand == brand else 1.0) for item in on_offer]
            last = chance.choices(on_offer, weights=weights)[0]
        bought[last.item_id] = last
    return list(bought)


def _draw_times(chance: random.Random, length: int) -> list[float]:
    """Seconds since 1970: a first purchase within two years from 2020 on, then one every 20 days on average."""
    moment = 1_577_836_800.0 + chance.uniform(0, 730 * _DAY)
    times = []
    for _ in range(length):
        times.append(moment)
        moment += chance.expovariate(1 / (20 * _DAY))
    return times
