"""`ilrec export`: what training left, in one folder that stands by itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from ilrec_trl import Recommender
from ilrec_trl.cli import main
from ilrec_trl.pipeline.prepared_data import PreparedData
from ilrec_trl.pipeline.recommend import load_model, recommender_of
from tests.pipeline.conftest import NUM_ITEMS


ROOT = Path(__file__).parents[2]
HISTORIES = [["3", "4", "5"], ["0"], ["22", "21", "20", "19"]]
READ_ELSEWHERE = f"""
import json, sys
from ilrec_trl import Recommender
recommender = Recommender.from_pretrained(sys.argv[1])
print(json.dumps(recommender.recommend({HISTORIES}, top_k=10)))
"""


@pytest.fixture(scope="module")
def trained(data_folder, tmp_path_factory):
    """Prepared titles, a model trained on them for a moment, and its evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    prepared, model, evaluation = (str(folder / name) for name in ("data", "model", "evaluation"))
    shape = ["--hidden_size", "16", "--intermediate_size", "32", "--num_hidden_layers", "3"]
    assert main(["prepare", "--data", str(data_folder), "--item_format", "titles", "--vocab_size", "300",
                 "--max_history", "5", "--output_dir", prepared]) == 0  # fmt: skip
    assert main(["train", "--prepared", prepared, "--output_dir", model, *shape, "--num_attention_heads", "2",
                 "--num_train_epochs", "1", "--crr_weight", "0", "--validation_users", "10"]) == 0  # fmt: skip
    assert main(["evaluate", "--prepared", prepared, "--model", model, "--output_dir", evaluation]) == 0
    return prepared, model, evaluation


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    prepared, model, evaluation = trained
    folder = tmp_path_factory.mktemp("exported")
    arguments = ["--prepared", prepared, "--model", model, "--evaluation", evaluation, "--output_dir", str(folder)]
    assert main(["export", *arguments, "--num_beams", "12"]) == 0
    return folder


def lists_of(prepared, model):
    data = PreparedData.load(prepared)
    ranked = recommender_of(data, model, num_beams=12).recommend(HISTORIES, top_k=10)
    return json.loads(json.dumps(ranked))


def read_elsewhere(folder):
    command = [sys.executable, "-c", READ_ELSEWHERE, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_fresh_process_recommends_the_same(trained, exported):
    prepared, model, _ = trained
    assert read_elsewhere(exported) == lists_of(prepared, load_model(model))


def test_the_command_recommends_from_the_folder_alone(trained, exported, capsys):
    prepared, model, _ = trained
    arguments = ["--history", "3", "4", "--top_k", "4", "--num_beams", "12"]
    assert main(["recommend", "--model", str(exported), *arguments]) == 0
    alone = capsys.readouterr().out
    assert main(["recommend", "--model", model, "--prepared", prepared, *arguments]) == 0
    assert capsys.readouterr().out == alone
    assert alone.count("Thing number") == 4
    assert main(["recommend", "--model", str(exported), "--user", "7"]) == 2
    assert "--user needs --prepared" in capsys.readouterr().err
    assert main(["recommend", "--model", model, *arguments]) == 2
    assert "no recommender.json; write it with `ilrec export`" in capsys.readouterr().err


def test_the_card_is_one_of_the_hub_and_shows_the_figures(trained, exported):
    card = ModelCard.load(exported / "README.md")
    assert {"recommendation", "ilrec"} <= set(card.data.tags)
    assert card.data.library_name == "transformers"
    figures = json.loads((Path(trained[2]) / "metrics.json").read_text())["methods"]["model"]
    row = f"| ndcg@10 | {figures['ndcg@10']:.4f} ± {figures['standard_error']['ndcg@10']:.4f} |"
    for text in [row, "test split", "| `cpo_beta` | 3.0 |", "num_beams 20", "arxiv.org/abs/2602.17410", "24 items"]:
        assert text in card.text, text
    assert str(Path(trained[0]).parent) not in card.content


def test_generation_settings(trained, exported):
    config = GenerationConfig.from_pretrained(exported)
    assert (config.num_beams, config.do_sample, config.length_penalty) == (12, False, 0.0)
    assert config.max_new_tokens == PreparedData.load(trained[0]).item_trie.depth


def test_dtype(trained, tmp_path):
    prepared, model, _ = trained
    assert main(["export", "--prepared", prepared, "--model", model, "--output_dir", str(tmp_path),
                 "--dtype", "bfloat16"]) == 0  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert "None was given when the model was exported" in (tmp_path / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")  # peft/peft_model.py
def test_an_adapter_is_merged(trained, tmp_path):
    """Exported, it recommends what the model with its adapter does, up to the rounding of the merge."""
    prepared, base, _ = trained
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    folder = tmp_path / "out"
    arguments = ["--prepared", prepared, "--model", str(tmp_path / "adapter"), "--output_dir", str(folder)]
    assert main(["export", *arguments, "--num_beams", str(NUM_ITEMS)]) == 0
    assert not (folder / "adapter_config.json").exists()
    merged = all_scores(Recommender.from_pretrained(folder))
    data = PreparedData.load(prepared)
    with_adapter, without = (
        all_scores(recommender_of(data, each, NUM_ITEMS)) for each in (model.eval(), load_model(base))
    )
    assert merged == pytest.approx(with_adapter, abs=1e-4)
    assert merged != pytest.approx(without, abs=1e-2)


def all_scores(recommender):
    return {item: score for item, _, score in recommender.recommend([["3", "4", "5"]], top_k=NUM_ITEMS)[0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "/does/not/exist"}, "holds no config.json, so there is no model"),
        ({"--prepared": "/does/not/exist"}, "holds no prepare.json"),
        ({"--evaluation": "/does/not/exist"}, "holds no metrics.json; write it with `ilrec evaluate --output_dir"),
        ({"--output_dir": None}, "is where the input lies; name another folder"),
    ],
)
def test_refusals(trained, tmp_path, capsys, change, message):
    prepared, model, _ = trained
    options = {"--prepared": prepared, "--model": model, "--output_dir": str(tmp_path / "out")} | change
    options["--output_dir"] = options["--output_dir"] or model
    assert main(["export", *(word for pair in options.items() for word in pair)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_the_item_tokens_is_refused(trained, tmp_path, capsys):
    prepared, base, _ = trained
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(200)
    model.save_pretrained(tmp_path / "small")
    assert main(["export", "--prepared", prepared, "--model", str(tmp_path / "small"),
                 "--output_dir", str(tmp_path / "out")]) == 2  # fmt: skip
    assert "the vocabulary has 200 entries" in capsys.readouterr().err
