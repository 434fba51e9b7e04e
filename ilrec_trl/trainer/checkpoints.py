"""Finding the checkpoint to resume from after a run was killed."""

from __future__ import annotations

import json
from pathlib import Path


def find_last_whole_checkpoint(output_dir: str | Path) -> str:
    """
    The checkpoint of the latest step that was saved to its end. The trainer's state is the last file that
    [`~transformers.Trainer`] writes, so a checkpoint is whole where that file is there and can be read.

    Args:
        output_dir (`str` or `Path`):
            Folder that holds `checkpoint-<step>` folders.

    Returns:
        `str`: path of the checkpoint.

    Raises:
        `ValueError`: where no checkpoint is whole.
    """
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name[11:].isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name[11:]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        return str(folder)
    found = f"only {', '.join(sorted(folder.name for folder in folders))}, cut off while saving" if folders else "none"
    raise ValueError(
        f"`resume_from_checkpoint=True`, but there is no whole checkpoint in `{output_dir}` (found: {found}). Start "
        "anew with `resume_from_checkpoint=None`, or give the path of a checkpoint."
    )
