"""Every example script from its command line to its end, on small settings."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from ilrec_trl import ItemTrie


SCRIPTS = Path(__file__).parents[2] / "examples/scripts"
# The scripts keep pinned memory on for those who have a GPU (torch/utils/data/dataloader.py).
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script as `python script.py arguments`, in this process: importing torch anew takes longer."""

    def run_script(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        variables = runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out, variables

    return run_script


@pytest.fixture(scope="module")
def folder(make_folder):
    """A small Llama that knows no item yet, and a data folder in LC-Rec's format."""
    return make_folder(num_users=40)


def test_the_swap_and_recommending_with_its_model(run, tmp_path):
    output, variables = run("sft_to_ilrec.py", "--output_dir", tmp_path, "--num_users", 80, "--num_train_epochs", 1)
    figures = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.startswith(("SFT", "ILRec"))}
    assert list(figures) == ["SFT", "ILRec"]
    assert figures["SFT"] != figures["ILRec"]
    for pairs in figures.values():
        assert pairs[::2] == ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr"]
        assert all(0 <= float(value) <= 1 for value in pairs[1::2])
    assert any("ilrec/crr_loss" in entry for entry in variables["trainer"].state.log_history)

    history, titles = ["i14", "i35"], variables["store"].titles
    output, _ = run("recommend.py", "--model", tmp_path, "--history", *history, "--top_k", 7)
    ranked = re.findall(r"^ *(\d+)\. (\S+) (.+) \((-?[\d.]+)\)$", output, flags=re.MULTILINE)
    assert [int(rank) for rank, *_ in ranked] == list(range(1, 8))
    items = [item for _, item, *_ in ranked]
    assert len(set(items)) == 7
    assert not set(items) & set(history)
    assert all(titles[item] == title for _, item, title, _ in ranked)
    scores = [float(score) for *_, score in ranked]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("reward", ["markov_chain", "scores_on_disk"])
def test_rewards_of_your_own(run, tmp_path, reward):
    options = ["--reward", reward, "--output_dir", tmp_path, "--num_users", 60, "--num_train_epochs", 1]
    output, variables = run("train_with_your_own_reward.py", *options)
    assert re.search(rf"^{reward} \{{'hit@1'", output, flags=re.MULTILINE)
    assert any(entry.get("ilrec/crr_loss", 0) > 0 for entry in variables["trainer"].state.log_history)
    # The chain gives an item that followed the last one more than an item that never did.
    if reward == "markov_chain":
        trie, (_, items) = variables["item_trie"], variables["splits"].train[0]
        scores = variables["reward_func"]([items[:1]])[0]
        assert scores[trie.index_of([items[1]])].item() > scores.min().item()


# PEFT 0.21 (peft/utils/other.py) asks for gradient checkpointing by the name that transformers 5.23 deprecates, and
# (peft/utils/save_and_load.py) says that it saves embeddings which grew.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_qlora_on_a_small_local_model(run, folder, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("ilrec_trl.rewards.sasrec_training.MIN_STEPS", 20)
    options = ["--lora_r", 4, "--batch_size", 8, "--gradient_accumulation_steps", 1, "--learning_rate", 0.01]
    output, variables = run(
        "qlora_llama.py", "--model", folder / "model", "--data", folder, "--output_dir", tmp_path, *options
    )
    model = variables["model"]
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"  # nf4 below LoRA
    assert re.search(r"'eval_hit@10': 0\.\d+", output)
    trained = [name for name, value in variables["trainer"].model.named_parameters() if value.requires_grad]
    assert any("lora_A" in name for name in trained)
    assert any("token_adapter" in name and "embed_tokens" in name for name in trained)
    losses = [entry["train_loss"] for entry in variables["trainer"].state.log_history if "train_loss" in entry]
    assert 0 < losses[0] < 50

    history = ItemTrie.load(tmp_path).item_ids[:2]
    output, _ = run("recommend.py", "--model", tmp_path, "--history", *history, "--top_k", 3)
    assert len(re.findall(r"^ *\d+\. i\d+ <a_\d+><b_\d+><c_\d+>", output, flags=re.MULTILINE)) == 3


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_help_and_length(run, script, capsys):
    with pytest.raises(SystemExit) as end:
        run(script, "--help")
    assert end.value.code == 0
    assert f"python examples/scripts/{script}" in capsys.readouterr().out
    assert len((SCRIPTS / script).read_text().splitlines()) <= 80


def test_several_tasks(run, tmp_path):
    (tmp_path / "mine.jinja").write_text("Mine:\n{% for item in history %}{{ item }}{{ separator }}{% endfor -%}\n")
    arguments = ["--num_users", 40, "--num_train_epochs", 1, "--template", "titles", tmp_path / "mine.jinja"]
    output, variables = run("several_tasks.py", "--output_dir", tmp_path / "out", *arguments)
    for task in ("next_item", "next_title", "item_to_title", "title_to_item"):
        assert f"{task}:\n" in output
    introductions = {row["prompt"].splitlines()[0] for row in variables["train_dataset"] if row["task"] == "next_item"}
    assert introductions == {"The user bought, in order:", "Mine:"}
    assert set(variables["evaluator"].questions.prompts[0].splitlines()[:1]) == {"The user bought, in order:"}
    assert "hit@10" in output.splitlines()[-1]
