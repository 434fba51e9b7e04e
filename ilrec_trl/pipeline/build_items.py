"""`ilrec items`: semantic IDs for a catalogue, for items that come later, and a report of any."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..items.semantic_id_files import find_json, read_index, read_json, write_lc_rec, write_minionerec
from ..items.title_files import find_title_file, is_table, read_columns, read_titles
from ..items.titles import clean_title
from ..report.semantic_id_report import write_semantic_id_report
from ..semantic_ids.item_encoder import ItemEncoder
from ..semantic_ids.semantic_ids import SemanticIds, build_semantic_ids
from ..semantic_ids.text_vectors import FIELDS, SentenceEncoder, template_fields
from .item_options import (
    CodeOptions,
    CollaborativeOptions,
    ItemReportOptions,
    ItemSourceOptions,
    NewItemOptions,
    TextVectorOptions,
)
from .option_checks import check_items_build
from .options import input_errors
from .prepare import items_columns
from .prepared_data import PreparedData


if TYPE_CHECKING:
    from numpy.typing import NDArray

Items = dict[str, dict[str, Any]]


def build_items(
    source: ItemSourceOptions, text: TextVectorOptions, collaborative: CollaborativeOptions, code: CodeOptions
) -> dict[str, Any]:
    """Build semantic IDs and write them, what new items need, and the report. Returns what `report.json` holds."""
    check_items_build(source, text, collaborative, code)
    with input_errors():
        origin, folder = Path(source.items).resolve(), Path(source.output_dir).resolve()
        if folder in (origin, origin.parent):
            raise ValueError(f"--output_dir {source.output_dir} holds the items; give another folder")
        items = _source_items(source, _fields(text.fields, text.text_template))
        encoder = None
        if source.vectors is not None:
            vectors = _read_vectors(source, list(items))
        else:
            encoder, vectors = _encode(items, text, collaborative, code.seed)
        ids = build_semantic_ids(
            list(items),
            vectors,
            levels=code.levels,
            codebook_size=code.codebook_size,
            unique=code.unique,
            balance=code.balance,
            seed=code.seed,
            iterations=code.iterations,
        )
        return _write(ids, items, encoder, source, code.minionerec)


def add_items(source: ItemSourceOptions, new: NewItemOptions) -> dict[str, Any]:
    """Give new items IDs by the codebooks of those before, which stay. Returns what `report.json` holds."""
    with input_errors():
        folder = Path(new.semantic_ids)
        if not (folder / "semantic_ids.json").is_file():
            raise FileNotFoundError(f"{folder} holds no semantic_ids.json; write it with `ilrec items build` first")
        before, known = SemanticIds.load(folder), _read_items(_find(folder, "item.json"))
        own = source.vectors is not None
        if own and (folder / "encoder.json").is_file():
            raise ValueError(f"{folder} was built from texts, so --vectors would mean something else; leave them out")
        if source.vector_ids is not None and not own:
            raise ValueError("--vector_ids are the items of --vectors; leave them out")
        encoder = None if own or not (folder / "encoder.json").is_file() else ItemEncoder.load(folder)
        fields = _fields(encoder.fields, encoder.template) if encoder else None
        given = _source_items(source, fields)
        items = {item_id: about for item_id, about in given.items() if item_id not in before.item_ids}
        if not items:
            raise ValueError(f"all {len(given)} items have semantic IDs already; there is nothing to add")
        if own:
            vectors = _read_vectors(source, list(items))
        elif encoder is not None:
            vectors = encoder.encode(items)
        else:
            raise ValueError(f"{folder} was built from vectors of your own; give --vectors of the new items too")
        ids = before.assign(list(items), vectors, known_tokens=not new.new_tokens)
        return _write(ids, known | items, encoder, source)


def report_items(options: ItemReportOptions) -> dict[str, Any]:
    """Write the report of semantic IDs that were made anywhere. Returns what `report.json` holds."""
    with input_errors():
        index = read_index(_find(options.data, "index.json"))
        about = find_json(options.data, "item.json")
        items = {} if about is None else _read_items(about)
        return write_semantic_id_report(options.output_dir, index, _titles(items))


def _encode(
    items: Items, text: TextVectorOptions, collaborative: CollaborativeOptions, seed: int
) -> tuple[ItemEncoder, NDArray[np.float32]]:
    if text.embedding_model is not None:
        encoder = ItemEncoder(
            SentenceEncoder(text.embedding_model), text.fields, text.text_template, text.without_text
        )
    else:
        encoder = ItemEncoder.fit_tfidf(
            items,
            text.fields,
            text.text_template,
            dimensions=text.dimensions,
            seed=seed,
            without_text=text.without_text,
        )
    if collaborative.sasrec is None:
        return encoder, encoder.encode(items)
    from ..rewards.sasrec import SASRecModel
    from ..rewards.sasrec_group import GROUP_FILE

    if collaborative.prepared is None:
        raise ValueError("--sasrec needs --prepared, the data it was trained on: other items' vectors say nothing")
    if (Path(collaborative.sasrec) / GROUP_FILE).is_file():
        raise ValueError(
            f"{collaborative.sasrec} holds several SASRecs, whose vectors have nothing in common; train one of "
            "all users: ilrec sasrec --sasrec_folds 1"
        )
    sasrec = SASRecModel.from_pretrained(collaborative.sasrec)
    prepared = PreparedData.load(collaborative.prepared)
    trained = {item for _, sequence in prepared.splits.train for item in sequence}
    known = np.array([item_id in trained for item_id in items])
    vectors = np.zeros((len(items), sasrec.config.hidden_size), np.float32)
    vectors[known] = sasrec.item_vectors([item_id for item_id in items if item_id in trained]).numpy()
    weight, mode = collaborative.collaborative_weight, collaborative.collaborative_mode
    return encoder, encoder.add_collaborative(items, vectors, known, weight, mode)


def _write(
    ids: SemanticIds,
    items: Items,
    encoder: ItemEncoder | None,
    source: ItemSourceOptions,
    minionerec: str | None = None,
) -> dict[str, Any]:
    folder = Path(source.output_dir)
    ids.save(folder)
    if encoder is not None:
        encoder.save(folder)
    else:  # one of an earlier build would make other vectors
        (folder / "encoder.json").unlink(missing_ok=True)
    write_lc_rec(folder, ids.to_dict(), items)
    if minionerec is not None:
        write_minionerec(folder / "minionerec", minionerec, ids.to_dict(), items)
    origin = Path(source.items)
    if origin.is_dir():  # the interactions go along, so that the folder is a data set
        for path in [*origin.glob("inter.json*"), *origin.glob("*.inter.json*")]:
            if path.parent.resolve() != folder.resolve():
                shutil.copyfile(path, folder / path.name)
    return write_semantic_id_report(folder, ids.to_dict(), _titles(items), ids.figures, ids.sizes)


def _fields(fields: Sequence[str] | None, template: str | None) -> Sequence[str] | None:
    """Fields that were asked for by name; `None` for the usual ones."""
    return template_fields(template) if template is not None else fields


def _source_items(source: ItemSourceOptions, fields: Sequence[str] | None) -> Items:
    """What is known of the items; of a table their titles, brands and `fields`, by default the usual ones it has."""
    path = Path(source.items)
    if path.is_dir():
        path = find_title_file(path) or _find(path, "item.json")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file or folder {path}; give item.json or a folder that holds one")
    columns = items_columns(source.items_columns)
    if not is_table(path):
        if columns:
            raise ValueError(f"--items_columns names columns of a table, and {path} is an object of item ids")
        return _read_items(path)
    names = read_columns(path)
    usual = [name for name in FIELDS if name in names]
    found = read_titles(path, columns=columns, fields=usual if fields is None else fields, bad_rows=source.bad_rows)
    brands = {item_id: {"brand": brand} for item_id, brand in found.brands.items()}
    return {
        item_id: {"title": title} | brands.get(item_id, {}) | found.fields.get(item_id, {})
        for item_id, title in found.titles.items()
    }


def _read_items(path: Path) -> Items:
    """What an `item.json` says of the items."""
    items = read_json(path)
    for item_id, about in items.items():
        if not isinstance(about, dict):
            raise ValueError(f"{path}: item {item_id!r} is {about!r}, expected an object such as {{'title': '...'}}")
    if not items:
        raise ValueError(f"{path} holds no items")
    return items


def _find(folder: str | Path, name: str) -> Path:
    found = find_json(folder, name)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no {name} (nor .gz, nor <data set>.{name})")
    return found


def _read_vectors(source: ItemSourceOptions, item_ids: list[str]) -> NDArray[Any]:
    """The user's own vectors in the order of the items."""
    if source.vectors is None or source.vector_ids is None:
        raise ValueError("--vectors needs --vector_ids, the item ids of its rows")
    try:
        vectors = np.load(source.vectors, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{source.vectors} is no .npy file of numbers ({error})") from error
    text = Path(source.vector_ids).read_text(encoding="utf-8")
    row_ids = list(map(str, json.loads(text))) if text.lstrip().startswith("[") else text.split()
    if len(row_ids) != len(vectors) or len(set(row_ids)) != len(row_ids):
        raise ValueError(
            f"{source.vectors} has {len(vectors)} rows and {source.vector_ids} {len(row_ids)} ids, "
            f"{len(set(row_ids))} of them distinct; give one id a row"
        )
    rows = {item_id: row for row, item_id in enumerate(row_ids)}
    if missing := [item_id for item_id in item_ids if item_id not in rows]:
        raise ValueError(f"{source.vector_ids} lacks {len(missing)} items, such as {missing[:3]}; give vectors of all")
    return vectors[[rows[item_id] for item_id in item_ids]]


def _titles(items: Items) -> dict[str, str]:
    return {item_id: clean_title(str(about.get("title") or "")) for item_id, about in items.items()}
