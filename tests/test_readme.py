"""The example of the README, run as it stands but for the name of the model and a smaller budget."""

import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec_trl import ItemCatalog, generate_store


README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs(tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    # A model that has never seen an item token, as a pretrained one has not.
    tokenizer = ItemCatalog.from_titles(generate_store(num_users=1).titles).build_tokenizer(300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    small = f'"{tmp_path}/out", num_train_epochs=1, use_cpu=True, bf16=False, activation_checkpointing=False'
    changes = {
        '"Qwen/Qwen3-0.6B"': f'"{tmp_path}/model"',
        "generate_store()": "generate_store(num_users=60, num_items=60)",
        'ILRecConfig("recommender")': f"ILRecConfig({small})",
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), {})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[[(")]
    assert len(re.findall(r"\('i\d+', -\d+\.\d+\)", line)) == 3


def test_the_example_is_short():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.splitlines()) == 12


def test_the_diff_names_the_swap():
    assert (
        "- from trl import SFTConfig, SFTTrainer\n+ from ilrec_trl import ILRecConfig, ILRecTrainer" in README[:1500]
    )


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target} " in README
        assert re.search(rf"^{target}:.*## ", makefile, flags=re.MULTILINE)
