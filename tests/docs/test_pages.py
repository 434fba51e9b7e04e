"""The pages of docs/: their code runs, their commands are understood, their links lead somewhere, all is named."""

import dataclasses
import doctest
import re
import shlex
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig

import ilrec_trl
from ilrec_trl import ILRecConfig, ItemCatalog, generate_store
from ilrec_trl.cli import COMMANDS, parse_options

from .options import MARK, PAGE, hand_written, write_options


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Words that a page may have at most. Not written by hand: compatibility.md, what api.md becomes, the end of cli.md.
MOST_WORDS = {
    "README": 500,
    "quickstart": 500,
    "own_data": 900,
    "does_it_help": 600,
    "items": 1400,
    "training": 1400,
    "teachers": 1400,
    "recommending": 1400,
    "serving": 1400,
    "data": 1400,
    "cli": 900,
    "method": 900,
    "architecture": 900,
    "index": 250,
}
MOST_WORDS_OF_ALL = 12_000
# DataLoader says that there is no accelerator to pin memory for (torch/utils/data/dataloader.py).
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


def blocks(page, language):
    """Line number and text of each fenced block that is not marked as not run."""
    text = page.read_text()
    pattern = rf"(<!-- not run:[^\n]*-->\n+)?^```{language}\n(.*?)^```$"
    for found in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL):
        if not found[1]:
            yield text[: found.start()].count("\n") + 2, found[2]


# What a page's program does on a GPU for minutes, on a CPU for seconds.
SMALLER = {
    "own_data": {
        'sasrec_training_arguments("runs/sasrec")': (
            'sasrec_training_arguments("runs/sasrec", num_train_epochs=1, dataloader_pin_memory=False)'
        ),
        "folds=5": "folds=2",
        'dtype="bfloat16"': 'dtype="float32"',
        "num_train_epochs=3,": "num_train_epochs=1, use_cpu=True, bf16=False, activation_checkpointing=False,",
    },
}


def write_own_data():
    """The two tables that the page speaks of, and a tiny model in a folder of the name that it has on the Hub."""
    store = generate_store(seed=0, num_users=24, num_items=42)
    named = zip(store.interactions.users, store.interactions.sequences, strict=True)
    rows = [f"{user},{item},{time}" for user, items in named for time, item in enumerate(items)]
    Path("purchases.csv").write_text("\n".join(["user,item,time", *rows]))
    titles = [f"{item},{title}" for item, title in store.titles.items()]
    Path("products.csv").write_text("\n".join(["item,title", *titles]))
    tokenizer = ItemCatalog.from_titles(store.titles).build_tokenizer(300)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    set_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes, **special)).save_pretrained("Qwen/Qwen3-0.6B")
    tokenizer.save_pretrained("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "python"))], ids=lambda page: page.stem)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page are one program; those with prompts must print what they show."""
    monkeypatch.chdir(tmp_path)
    smaller = SMALLER.get(page.stem, {})
    if smaller:
        write_own_data()
    text = page.read_text()
    assert [old for old in smaller if old not in text] == []
    names = {"__name__": page.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for line, source in blocks(page, "python"):
        for old, new in smaller.items():
            source = source.replace(old, new)
        if ">>>" in source:
            case = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), line - 1)
            report = []
            result = runner.run(case, out=report.append, clear_globs=False)
            names |= case.globs
            assert result.failed == 0, "".join(report)
        else:
            exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(DOCS.parent)  # where the files of --config are named from
    for line, source in blocks(page, "bash"):
        for command in source.replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            if words[:1] != ["ilrec"] or "--help" in words:
                continue
            name = next(name for name in COMMANDS if words[1:][: len(name.split())] == name.split())
            summary, options, _ = COMMANDS[name]
            rest = words[1 + len(name.split()) :]
            assert len(parse_options(name, summary, options, rest)) == len(options), f"{page.name}:{line}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text)
    missing = []
    for target, anchor in targets:
        file = page.parent / target if target else page
        if "://" not in target and not (file.exists() and (not anchor or anchor in headings(file))):
            missing.append(f"{target}#{anchor}")
    assert not missing


def headings(page):
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    lines = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_index_names_every_page():
    index = (DOCS / "index.md").read_text()
    assert [page.name for page in PAGES if page.stem != "index" and f"({page.name})" not in index] == []


def test_every_public_name_is_in_the_pages():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in ilrec_trl.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_api_page_has_every_public_name():
    named = set(re.findall(r"^::: ilrec_trl\.(\w+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE))
    assert named == set(ilrec_trl.__all__) - {"__version__"}


def test_the_training_page_has_every_option_with_its_default():
    text = (DOCS / "training.md").read_text()
    own = {field.name for field in dataclasses.fields(ILRecConfig)}
    own -= {field.name for field in dataclasses.fields(SFTConfig)}
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, flags=re.MULTILINE))
    defaults = {field.name: repr(field.default).replace("'", '"') for field in dataclasses.fields(ILRecConfig)}
    assert rows == {name: defaults[name] for name in own}


def test_the_cli_page_has_every_command():
    text = (DOCS / "cli.md").read_text()
    assert [command for command in COMMANDS if f"\nilrec {command}" not in text] == []


def test_the_options_on_the_cli_page_are_those_of_a_run():
    message = "docs/cli.md is not what the options say: run `make page`"
    assert PAGE.read_text() == hand_written(PAGE.read_text()) + MARK + write_options(), message


def test_pages_are_short():
    pages = {page.stem: page for page in [*PAGES, ROOT / "README.md"] if page.stem not in ("api", "compatibility")}
    words = {name: len(hand_written(page.read_text()).split()) for name, page in pages.items()}
    assert {name: number for name, number in words.items() if number > MOST_WORDS[name]} == {}
    assert sum(words.values()) <= MOST_WORDS_OF_ALL


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md", "docs/images/prompt_to_loss.svg"])
def test_files_that_are_named_exist(name):
    files = re.findall(r"\b((?:[a-z_]+/)+_?[a-z_]+\.py)", (ROOT / name).read_text())
    assert [file for file in files if not ((ROOT / "ilrec_trl" / file).exists() or (ROOT / file).exists())] == []


def test_insides_of_trl_are_where_the_architecture_page_says():
    table = (DOCS / "architecture.md").read_text().partition("| inside of TRL")[2].partition("\n\n")[0]
    names = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    source = (ROOT / "ilrec_trl/trainer/_trl.py").read_text()
    assert names
    assert [name for name in names if not re.search(rf"\b{name}\b", source)] == []
