"""A data folder in LC-Rec's format: users walk round a circle of items, so that the next item can be learnt."""

import json
import random

import pytest


NUM_ITEMS, NUM_USERS = 24, 60


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("circle")
    generator = random.Random(0)
    sequences = {}
    for user in range(NUM_USERS):
        start, length = generator.randrange(NUM_ITEMS), generator.randrange(5, 10)
        sequences[str(user)] = [(start + step) % NUM_ITEMS for step in range(length)]
    index = {str(item): [f"<a_{item // 6}>", f"<b_{item % 6}>"] for item in range(NUM_ITEMS)}
    index["23"] = index["22"]  # two items of one semantic ID
    (folder / "inter.json").write_text(json.dumps(sequences))
    (folder / "index.json").write_text(json.dumps(index))
    titles = {str(item): {"title": f"Thing number {item}", "brand": "B"} for item in range(NUM_ITEMS)}
    (folder / "item.json").write_text(json.dumps(titles))
    return folder
