"""Files that hold titles or semantic IDs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def read_json(folder: str | Path, name: str) -> dict[str, Any] | None:
    """`name` or `<data set>.name` in `folder`, plain or compressed; `None` where there is none."""
    for pattern in (name, f"{name}.gz", f"*.{name}", f"*.{name}.gz"):
        found = sorted(Path(folder).glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds several files named {pattern}: {[path.name for path in found]}. Keep one."
            )
        if found:
            opener = gzip.open if found[0].suffix == ".gz" else open
            with opener(found[0], "rt", encoding="utf-8") as file:
                return {str(item_id): value for item_id, value in json.load(file).items()}
    return None
