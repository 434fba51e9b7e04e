"""Two processes on gloo that share an evaluation, and evaluations that are killed, against one that is not."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from ilrec_trl.evaluation import evaluator as evaluator_module
from ilrec_trl.evaluation.resume import FinishedUsers
from tests.torchrun import torchrun

from .small_store import make_model
from .two_processes import CASES, RESUMED, Store


@pytest.fixture(scope="module")
def store():
    return Store()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of an evaluation whose two processes were killed amid their tenth batches."""
    folder = tmp_path_factory.mktemp("killed")
    _, ends = torchrun("tests.evaluation.two_processes", folder, "killed", logs=folder / "logs")
    assert "SIGKILL" in ends.partition("launcher:")[2], ends
    return folder / "finished"


@pytest.fixture(scope="module")
def two(killed, tmp_path_factory):
    """What two processes saw, by rank; they also go on with the evaluation that was killed."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(killed, folder / "finished")
    status, ends = torchrun("tests.evaluation.two_processes", folder, "all", logs=folder / "logs")
    assert status == 0, ends
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_give_the_figures_of_one_bit_for_bit(store, two):
    expected = json.loads(json.dumps([store.figures(**case) for case in CASES]))
    for seen in two[1]:
        assert seen["cases"] == expected


def test_the_callback_shares_the_users_under_ddp(store, two):
    folder, seen = two
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    expected = store.figures(model, users=17, batch_size=4)["metrics"]
    for results in seen:
        assert {name: results["ddp"][f"eval_{name}"] for name in expected} == expected


def test_weights_sharded_by_fsdp2_are_ranked_by_all_processes_together(store, two):
    expected = store.figures(users=17, batch_size=4)
    for seen in two[1]:
        assert seen["fsdp2"]["starts"] == expected["starts"]
        assert seen["fsdp2"]["metrics"] == expected["metrics"]
        assert "normalise='continuations' reads rows of the LM head" in seen["fsdp2 refused"]


def test_processes_that_differ_are_refused_on_each(two):
    for seen in two[1]:
        settings, model = seen["refused"]
        assert settings.startswith("the processes differ in settings, so they cannot share")
        assert model.startswith("the processes differ in model, so")


def finished_rows(folder):
    return FinishedUsers(folder, {}).load()


@pytest.mark.parametrize("killed_by", ["signal", "error"])
def test_a_killed_evaluation_goes_on_as_if_nothing_had_been(store, killed, tmp_path, monkeypatch, killed_by):
    folder, calls = tmp_path / "finished", []
    recommend = evaluator_module.recommend

    def counting(*args, **kwargs):
        calls.append(1)
        if killed_by == "error" and len(calls) == 12:
            raise MemoryError
        return recommend(*args, **kwargs)

    monkeypatch.setattr(evaluator_module, "recommend", counting)
    if killed_by == "signal":
        shutil.copytree(killed, folder)
        assert len(finished_rows(folder)) == 16  # eight batches each, of one user
    else:
        with pytest.raises(MemoryError):
            store.figures(resume_dir=folder, **RESUMED)
        assert len(finished_rows(folder)) == 11  # an error that can be caught loses nothing
    left = 40 - len(finished_rows(folder))
    calls.clear()
    killed_by = ""
    resumed = store.figures(resume_dir=folder, **RESUMED)
    assert len(calls) == left
    assert len(finished_rows(folder)) == 40
    assert resumed == store.figures(**RESUMED)
    again = store.figures(resume_dir=folder, **RESUMED)
    assert again == resumed
    assert len(calls) == left + 40  # of the run without a folder alone


def test_two_processes_go_on_with_a_killed_evaluation(store, two):
    expected = json.loads(json.dumps(store.figures(**RESUMED)))
    assert [seen["resumed"] for seen in two[1]] == [expected, expected]


def test_ranks_do_not_depend_on_the_cut_offs(store, tmp_path):
    store.figures(users=5, resume_dir=tmp_path)
    assert list(store.figures(users=5, k=(2,), resume_dir=tmp_path)["metrics"]) == ["hit@2", "ndcg@2", "mrr"]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"users": 6}, "data set"),
        ({"num_beams": 11}, "settings"),
        ({"batch_size": 2}, "settings"),
        ({"ranking": "exact"}, "settings"),
        ({"model": None}, "model"),
    ],
)
def test_the_ranks_of_another_evaluation_are_refused(store, tmp_path, other, named):
    store.figures(users=5, resume_dir=tmp_path)
    if "model" in other:
        other = {"model": make_model(store.tokenizer)}
        other["model"].lm_head.weight.data[[3, 4]] = other["model"].lm_head.weight.data[[4, 3]]
    with pytest.raises(ValueError, match=f"ranks of another evaluation: its {named} differed. Give"):
        store.figures(**{"users": 5, **other}, resume_dir=tmp_path)


def test_another_catalogue_or_tokenizer_is_refused(store, tmp_path):
    store.figures(users=5, resume_dir=tmp_path)
    other = Store()
    other.tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match="its tokenizer differed"):
        other.figures(users=5, resume_dir=tmp_path)
    other = Store()
    sequences = {item: other.item_trie.sequence(item) for item in other.item_trie.item_ids}
    other.item_trie = type(other.item_trie).from_sequences({**sequences, "a": sequences["a"] + sequences["b"][:1]})
    with pytest.raises(ValueError, match="its catalogue differed"):
        other.figures(users=5, resume_dir=tmp_path)


def test_a_broken_file_or_a_folder_without_its_head_is_refused(store, tmp_path):
    store.figures(users=5, batch_size=2, resume_dir=tmp_path)
    (path,) = tmp_path.glob("rows-*.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"rows-\d+.npz cannot be read .* Remove it, and its users will be ranked"):
        store.figures(users=5, batch_size=2, resume_dir=tmp_path)
    path.write_bytes(content)
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=r"holds ranks but no evaluation.json"):
        store.figures(users=5, batch_size=2, resume_dir=tmp_path)
