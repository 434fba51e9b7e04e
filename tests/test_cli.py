"""The command line by itself: help, YAML files, and errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from ilrec_trl.cli import COMMANDS, main, parse_options


CONFIGS = sorted((Path(__file__).parents[1] / "examples/configs").glob("*.yaml"))


def test_the_commands():
    items = ["items build", "items add", "items report"]
    stages = ["prepare", "sasrec", "train", "evaluate", "recommend", "export", "run"]
    assert list(COMMANDS) == [*stages, *items, "env"]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_starts_fast(command):
    """No help imports torch, and the top-level one not even the parser of the options."""
    heavy = {"torch", "transformers.modeling_utils"} | ({"trl", "transformers"} if command is None else set())
    arguments = ["--help"] if command is None else [*command.split(), "--help"]
    script = f"""
import sys
from ilrec_trl.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert end.code == 0
assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (COMMANDS[command][0] if command else "run") in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--data", "/does/not/exist"], "ilrec run: error: there is no file or folder /does/not/exist"),
        (["run", "--bogus", "1"], "--bogus"),
        (["run", "--config", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
        (["items", "build", "--items", "/does/not/exist", "--output_dir", "x"], "items build: error: there is no"),
        (["run", "--config"], "--config needs the name of a file"),
        (["train", "--prepared", "/does/not/exist", "--output_dir", "x"], "ilrec prepare"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "YAML mapping"),
        ("a: [1\n", "not YAML"),
        ("learning: 1\n", "--learning"),
        ("seeds: [0]\nmax_history: 5\nseeds: [1]\n", "'seeds' in line 1 and in line 3"),
        ("env:\n  - {A: 1, A: 2}\n", "'A' in line 2 and in line 2"),
    ],
)
def test_bad_config_files(tmp_path, capsys, content, message):
    (tmp_path / "config.yaml").write_text(content)
    assert main(["run", "--config", str(tmp_path / "config.yaml")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_the_configurations_are_understood(config):
    data, model, *_, options = parse_options(
        "ilrec run", "", COMMANDS["run"][1], ["--config", str(config), "--seeds", "3"]
    )
    assert data.item_format == ("titles" if "titles" in config.stem else "semantic_ids")
    assert model.tie_word_embeddings is True
    assert options.seeds == [3]  # a flag overrides the file


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["items"], ["items", "fly"], ["items", "build"], ["run", "--seeds", "x"], ["evaluate"]]
)
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_env_shows_versions(capsys):
    assert main(["env"]) == 0
    assert "transformers" in capsys.readouterr().out
