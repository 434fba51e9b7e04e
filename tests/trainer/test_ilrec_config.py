"""Every field is checked where it is given, and the command line and YAML read it."""

import pytest
from trl import TrlParser

from ilrec_trl.trainer.ilrec_config import ILRecConfig


CPU = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intermediate_layers": 0}, "count of at least 1"),
        ({"intermediate_layers": []}, "non-empty list"),
        ({"intermediate_layers": "some"}, "'auto', got 'some'"),
        ({"intermediate_layers": True}, "got True"),
        ({"intermediate_layers": ["1"]}, "got \\['1'\\]"),
        ({"negative_selection": "best"}, "`negative_selection` must be one of"),
        ({"cpo_penalty": "none"}, "`cpo_penalty` must be one of"),
        ({"crr_scope": "all"}, "`crr_scope` must be one of"),
        ({"negative_threshold": -0.1}, "`negative_threshold` must be a finite number of at least 0"),
        ({"cpo_beta": float("nan")}, "`cpo_beta` must be"),
        ({"cpd_weight": float("inf")}, "`cpd_weight` must be"),
        ({"crr_weight": -1}, "`crr_weight` must be"),
        ({"crr_temperature": 0}, "above 0, got 0"),
        ({"reward_cache_mib": -1}, "`reward_cache_mib` must be a finite number of at least 0, got -1"),
        ({"negative_top_k": 0}, "at least 1, got 0"),
    ],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ILRecConfig(**CPU, **options)


@pytest.mark.parametrize(("given", "expected"), [("auto", "auto"), (2, 2), ("2", 2), ([0, -2], [0, -2]), ("[1]", [1])])
def test_layers_are_read_in_every_form(given, expected):
    assert ILRecConfig(**CPU, intermediate_layers=given).intermediate_layers == expected


def test_flags_and_yaml(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("intermediate_layers: [0, -2]\ncpo_beta: 2.5\n")
    flags = ["--output_dir", "out", "--use_cpu", "--bf16", "false", "--report_to", "none"]
    parsed = TrlParser(ILRecConfig).parse_args_and_config(
        [*flags, "--config", str(config), "--crr_scope", "negatives"]
    )
    (args,) = parsed
    assert (args.intermediate_layers, args.cpo_beta, args.crr_scope) == ([0, -2], 2.5, "negatives")
    (args,) = TrlParser(ILRecConfig).parse_args_and_config([*flags, "--intermediate_layers", "2"])
    assert args.intermediate_layers == 2
