"""The notebooks from top to bottom, in a kernel of the running interpreter."""

import ast
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilrec_trl import Interactions, ItemCatalog, ItemTrie, RecommendationEvaluator, generate_store, next_item_dataset


ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "examples/notebooks"
METRICS = ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr"]


def execute(name, folder, **variables):
    """Run a notebook in `folder`. Gives each code cell with its source, what it printed and its last value."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    manager = client.create_kernel_manager()
    # Without any folder of kernels Jupyter takes the interpreter that runs these tests.
    manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    assert manager.kernel_spec.argv[0] == sys.executable
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}
    client.execute(env=environment | variables)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    return execute("01_quickstart.ipynb", tmp_path_factory.mktemp("notebook"))


@pytest.fixture(scope="module")
def qlora(make_folder):
    """The cells, executed on a tiny Llama in nf4, and the folder they ran in."""
    pytest.importorskip("bitsandbytes")
    folder = make_folder(num_users=160, with_titles=True)
    cells = execute(
        "02_qlora_one_gpu.ipynb",
        folder,
        ILREC_MODEL=str(folder / "model"),
        ILREC_DATA=str(folder),
        ILREC_OUTPUT_DIR="run",
        ILREC_EPOCHS="4",
        ILREC_LEARNING_RATE="0.005",
        ILREC_ACCUMULATION_STEPS="1",
    )
    return cells, folder


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def value(cells, last_line):
    cell = next(cell for cell in cells if cell.source.splitlines()[-1] == last_line)
    return ast.literal_eval(next(output.data["text/plain"] for output in cell.outputs if "data" in output))


@pytest.mark.parametrize("name", ["sft_metrics", "ilrec_metrics"])
def test_metrics_are_those_of_a_model_that_learnt(quickstart, name):
    metrics = value(quickstart, name)
    assert list(metrics) == METRICS
    assert 0 < metrics["hit@1"] < metrics["hit@5"] < metrics["hit@10"] < 1
    assert metrics["hit@10"] > 4 * 10 / 200  # four times what a list drawn by chance would hit
    assert metrics["hit@1"] < metrics["ndcg@10"] < metrics["hit@10"]


def test_the_list_holds_real_titles(quickstart):
    titles = set(generate_store(seed=0, num_users=1, num_items=200).titles.values())
    bought, recommended = printed(quickstart[-2]).removeprefix("Bought:\n").split("Recommended:\n")
    bought = [line.strip() for line in bought.splitlines()]
    recommended = re.findall(r"^  (.+) \(-[\d.]+\)", recommended, flags=re.MULTILINE)
    assert len(set(recommended)) == 5
    assert set(recommended) | set(bought) <= titles
    assert not set(recommended) & set(bought)


def test_the_end_says_what_was_seen(quickstart):
    sft, ilrec = (value(quickstart, name)["ndcg@10"] for name in ("sft_metrics", "ilrec_metrics"))
    figures, difference, verdict = printed(quickstart[-1]).splitlines()
    assert figures == f"NDCG@10: SFT {sft:.4f}, ILRec {ilrec:.4f}"
    shown, low, high = map(float, re.findall(r"[-+]?\d+\.\d+", difference))
    assert shown == pytest.approx(ilrec - sft, abs=1e-4)
    assert low < shown < high
    assert (low > 0 or high < 0) == ("More than chance" in verdict)


def test_qlora_learns_in_four_bits(qlora):
    cells, _ = qlora
    assert any("Linear4bit" in printed(cell) for cell in cells)
    first, last = value(cells, "losses[0], losses[-1]")
    assert last < 0.8 * first
    bought, recommended = next(printed(cell) for cell in cells if "Bought:" in printed(cell)).split("Recommended:\n")
    bought = re.findall(r"^  (.+)$", bought, flags=re.MULTILINE)
    recommended = re.findall(r"^  (.+) \(-[\d.]+\)", recommended, flags=re.MULTILINE)
    assert len(set(recommended)) == 5
    assert not set(recommended) & set(bought)
    assert set(recommended) | set(bought) <= set(generate_store(num_users=1, num_items=60).titles.values())


# PEFT casts the loaded adapters to float32; the merged weights are not rounded to four bits.
@pytest.mark.parametrize(("name", "tolerance"), [("trained", 0), ("loaded", 0.05), ("merged", 0.25)])
def test_qlora_recommends_the_same_after_loading_and_merging(qlora, name, tolerance):
    cells, _ = qlora
    trained, metrics = value(cells, "metrics"), value(cells, f"{name}_metrics".removeprefix("trained_"))
    assert list(metrics) == METRICS
    assert metrics["hit@10"] > 1.6 * 10 / 60  # a list drawn by chance hits one target in six
    assert metrics["ndcg@10"] == pytest.approx(trained["ndcg@10"], rel=tolerance)
    first, shown = (
        {item: float(score) for item, score in re.findall(r"(i\d+):(-[\d.]+)", line)}
        for row in ("trained", name)
        for line in printed(cells[-1]).splitlines()
        if line.startswith(row)
    )
    both = first.keys() & shown.keys()
    assert len(both) >= 3
    assert [shown[item] for item in both] == pytest.approx([first[item] for item in both], rel=tolerance)


def test_qlora_leaves_a_merged_model_that_stands_alone(qlora):
    cells, folder = qlora
    saved = folder / "run/merged"
    splits, catalog = (
        Interactions.load(folder, format="lc_rec").leave_one_out(short_users="train"),
        ItemCatalog.load(saved),
    )
    evaluator = RecommendationEvaluator(next_item_dataset(splits.test, catalog), ItemTrie.load(saved))
    metrics = evaluator(AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved))
    assert metrics == pytest.approx(value(cells, "merged_metrics"))


def test_qlora_saves_adapters_and_new_rows_alone(qlora):
    cells, folder = qlora
    with safe_open(folder / "run/adapter/adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        trained = min(file.get_tensor(name).abs().max().item() for name in names if "lora_B" in name)
    assert trained > 0  # a gradient came through every 4-bit layer
    rows = [name for name in names if "lora" not in name]
    assert [name.split(".")[-1] for name in rows] == ["trainable_tokens_delta"] * 2


def test_qlora_explains_the_settings_in_force():
    cells = nbformat.read(NOTEBOOKS / "02_qlora_one_gpu.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    explained = dict(re.findall(r"^\| `(\w+)=(\S+)` \|", text, flags=re.MULTILINE))
    defaults = dict(re.findall(r'^(\w+) = .*environ.get\("\w+", "(.*?)"\)', text, flags=re.MULTILINE))
    given = dict(re.findall(r"^    (\w+)=(\S+),$", text[text.index("ILRecConfig(\n") :], flags=re.MULTILINE))
    assert len(explained) == 8
    assert explained == {name: defaults.get(given[name], given[name]) for name in explained}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_machine_paths(path):
    roots = "|".join(["home", "work", "tmp", "opt", "root", "usr", "var"])
    assert not re.search(rf"/(?:{roots})/", path.read_text())
