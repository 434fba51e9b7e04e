"""No flag without effect: each acts, or is refused by its name before any work."""

import pytest

from ilrec_trl.cli import main


RUN = [
    (["--store_users", "9"], {"data": "x"}, "--store_users"),
    (["--items", "x"], {}, "--items"),
    (["--user_column", "who"], {}, "--user_column"),
    (["--bad_rows", "drop"], {}, "--bad_rows"),
    (["--in_order", "--time_column", "when"], {"data": "x"}, "--time_column"),
    (["--rating_column", "stars"], {"data": "x"}, "--rating_column"),
    (["--test_start", "2020-01-01"], {}, "--test_start"),
    (["--validation_share", "0.1"], {}, "--validation_share"),
    (["--train_users_seed", "3"], {}, "--train_users_seed"),
    (["--prompt_seed", "3"], {}, "--prompt_seed"),
    (["--vocab_size", "300"], {}, "--vocab_size"),
    (["--system_prompt", "Hi"], {}, "--system_prompt"),
    (["--chat_template_kwargs", "{}"], {}, "--chat_template_kwargs"),
    (["--model", "x", "--hidden_size", "32"], {}, "--hidden_size"),
    (["--model", "x", "--attention_dropout", "0.1"], {}, "--attention_dropout"),
    (["--hidden_size", "15"], {}, "--hidden_size is 15, expected a multiple of --num_attention_heads, 4"),
    (["--num_attention_heads", "0"], {}, "--num_attention_heads, 0"),
    (["--sasrec", "x", "--sasrec_epochs", "3"], {}, "--sasrec_epochs"),
    (["--sasrec", "x", "--sasrec_dropout", "0.1"], {}, "--sasrec_dropout"),
    (["--sasrec_folds", "0"], {}, "--sasrec_folds"),
    (["--transition_share", "1"], {}, "--transition_share"),
    (["--sasrec_folds", "1", "--calibrate_rewards"], {}, "--calibrate_rewards"),
    (["--crr_weight", "0", "--reward_temperature", "2"], {}, "--reward_temperature"),
    (["--train_on_validation", "--validation_users", "5"], {}, "--validation_users"),
]


@pytest.mark.parametrize(("flags", "given", "named"), RUN, ids=[" ".join(flags) for flags, _, _ in RUN])
def test_run_refuses_what_it_would_not_use(flags, given, named, tmp_path, capsys):
    data = ["--data", str(tmp_path)] if given else []
    assert main(["run", *data, *flags, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()  # before any work


@pytest.fixture(scope="module")
def prepared(data_folder, tmp_path_factory):
    folders = {}
    for name, more in {"plain": [], "whole": ["--train_on_validation"]}.items():
        folders[name] = str(tmp_path_factory.mktemp(name))
        assert main(["prepare", "--data", str(data_folder), "--output_dir", folders[name], *more]) == 0
    return folders


TRAIN = [
    (["--method", "sft", "--cpo_beta", "1"], "plain", "SFT has neither negatives nor rewards; leave out --cpo_beta"),
    (["--method", "sft", "--sasrec", "x"], "plain", "leave out --sasrec"),
    (["--method", "sft", "--trainer_args", '{"negative_top_k": 4}'], "plain", "negative_top_k"),
    (["--crr_weight", "0", "--sasrec", "x"], "plain", "--crr_weight 0 trains without rewards; leave out --sasrec"),
    (["--sasrec", "x", "--sasrec_hidden_size", "8"], "plain", "leave out --sasrec_hidden_size"),
    (["--crr_weight", "0", "--num_beams", "30"], "whole", "nothing is ranked; leave out --num_beams"),
    (["--crr_weight", "0", "--ranking", "exact", "--num_beams", "30"], "plain", "has no beams; leave out --num_beams"),
]


@pytest.mark.parametrize(("flags", "data", "message"), TRAIN, ids=[" ".join(flags) for flags, _, _ in TRAIN])
def test_train_refuses_what_it_would_not_use(flags, data, message, prepared, tmp_path, capsys):
    assert main(["train", "--prepared", prepared[data], "--output_dir", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_other_commands_refuse_what_they_would_not_use(prepared, tmp_path, capsys):
    sasrec = ["sasrec", "--prepared", prepared["plain"], "--output_dir", str(tmp_path), "--reward_temperature", "2"]
    build = ["items", "build", "--items", str(tmp_path), "--output_dir", str(tmp_path / "ids")]
    vectors = [*build, "--vectors", "x.npy", "--vector_ids", "x.txt"]
    evaluate = ["evaluate", "--prepared", prepared["plain"], "--model", str(tmp_path), "--ranking", "exact"]
    for arguments, named in [
        (sasrec, "--reward_temperature"),
        ([*evaluate, "--num_beams", "30"], "--num_beams"),
        ([*build, "--vector_ids", "x.txt"], "--vector_ids"),
        ([*build, "--collaborative_weight", "0.5"], "--collaborative_weight"),
        ([*build, "--embedding_model", "x", "--dimensions", "8"], "--dimensions"),
        ([*vectors, "--dimensions", "8"], "--dimensions"),
        ([*vectors, "--sasrec", "x", "--prepared", "y"], "--sasrec"),
    ]:
        assert main(arguments) == 2
        assert named in capsys.readouterr().err


def test_what_others_read_is_no_flag_of_prepare_and_evaluate(tmp_path, capsys):
    evaluate = ["evaluate", "--prepared", "x", "--model", "y", "--validation_users", "3"]
    for command in (["prepare", "--hidden_size", "8"], evaluate):
        assert main(command) == 2
        assert command[-2] in capsys.readouterr().err
