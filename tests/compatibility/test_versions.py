"""The supported versions are those that the tests were seen to pass on."""

import json

import pytest
from packaging.requirements import Requirement

from .versions import RESULTS, newest, oldest, requirements


SEEN = json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["oldest", "newest"])
def test_all_tests_passed(kind):
    assert SEEN[kind]["failed"] == 0
    assert SEEN[kind]["passed"] > 300


def test_the_lower_bounds_were_run():
    ran = {name: f"{name}=={version.split('+')[0]}" for name, version in SEEN["oldest"]["versions"].items()}
    message = "setup.cfg has another lower bound than the tests were run with: run `make versions`"
    for requirement in oldest():
        name, _, bound = requirement.partition("==")
        parts = len(bound.split("."))
        version = ".".join(ran[name].partition("==")[2].split(".")[:parts])
        assert f"{name}=={version}" == requirement, message


def test_the_newest_are_within_the_supported_range():
    for text in newest():
        requirement = Requirement(text)
        version = SEEN["newest"]["versions"][requirement.name]
        assert requirement.specifier.contains(version), f"{requirement.name} {version} is outside {text}"


@pytest.mark.parametrize("name", ["trl", "transformers"])
def test_what_ilrec_builds_on_has_bounds_on_both_sides(name):
    operators = {specifier.operator for specifier in Requirement(f"{name}{requirements()[name]}").specifier}
    assert operators == {">=", "<"}
