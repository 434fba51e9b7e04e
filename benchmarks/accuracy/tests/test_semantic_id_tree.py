"""The picture of semantic IDs: of any catalogue, with titles and without, and from the command line."""

import json
import struct

import pytest

from benchmarks.accuracy.semantic_id_tree import draw_tree, main
from tests.report.test_semantic_id_report import INDEX, TITLES


def check_picture(path):
    picture = path.read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert picture.startswith(b"\x89PNG")
    assert width > 1000
    assert height > 800


@pytest.mark.parametrize(
    ("index", "titles"),
    [(INDEX, TITLES), (INDEX, None), ({"1": ["<a_0>"]}, None), ({"1": ["x"], "2": ["x", "y"], "3": ["z"]}, None)],
)
def test_the_picture(index, titles, tmp_path):
    draw_tree(index, tmp_path / "tree.png", titles)
    check_picture(tmp_path / "tree.png")


def test_the_command(tmp_path, capsys):
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    (tmp_path / "item.json").write_text(json.dumps({item: {"title": title} for item, title in TITLES.items()}))
    assert main(["--data", str(tmp_path), "--output", str(tmp_path / "tree.png")]) == 0
    check_picture(tmp_path / "tree.png")
    assert main(["--data", str(tmp_path / "none")]) == 2
    assert "holds no index.json" in capsys.readouterr().err
