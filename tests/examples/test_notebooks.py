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

from ilrec_trl import generate_store


ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples/notebooks/01_quickstart.ipynb"
METRICS = ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The executed notebook: for each code cell its source, what it printed and its last value."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    manager = client.create_kernel_manager()
    # Without any folder of kernels Jupyter takes the interpreter that runs these tests.
    manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    assert manager.kernel_spec.argv[0] == sys.executable
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}
    client.execute(env=environment)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
    shown, error, p_value = map(float, re.findall(r"[-+]?\d+\.\d+", difference))
    assert shown == pytest.approx(ilrec - sft, abs=1e-4)
    assert (abs(shown) / error > 1.96) == ("More than chance" in verdict) or abs(p_value - 0.05) < 0.01


def test_no_machine_paths():
    text = QUICKSTART.read_text()
    assert not re.search(r"/home/|/work/|/tmp/|/opt/", text)
