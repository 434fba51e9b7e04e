"""
Runs the tests of the trainer on the oldest and on the newest supported versions, each in an environment that is made
for it, and writes what was seen to `versions.json`: `make versions`. Needs nothing but Python and pip.
"""

import configparser
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree
from pathlib import Path


ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("versions.json")
TESTS = ["tests/trainer", "tests/compatibility"]
#: They compare the page and the results with the requirements, which may just have changed.
NOT_RUN = ["tests/compatibility/test_page.py", "tests/compatibility/test_versions.py"]
REPORTED = ("deepspeed", "bitsandbytes")


def requirements(section: str = "install_requires") -> dict[str, str]:
    """Names and version ranges from `setup.cfg`."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    option = setup["options"] if section == "install_requires" else setup["options.extras_require"]
    lines = [line for line in option[section].split() if re.match(r"[A-Za-z]", line)]
    return dict(re.match(r"([\w.-]+)(.*)", line).groups() for line in lines)


def oldest() -> list[str]:
    """Every requirement at its lower bound."""
    ranges = {**requirements(), **requirements("quantization")}
    return [f"{name}=={re.search(r'>=([^,]+)', versions)[1]}" for name, versions in ranges.items()]


def newest() -> list[str]:
    """Every requirement as new as its range and pip's index allow, and DeepSpeed."""
    ranges = {**requirements(), **requirements("quantization"), **requirements("deepspeed")}
    return [f"{name}{versions}" for name, versions in ranges.items() if name != "torch"]


def run(packages: list[str], torch: str) -> dict[str, object]:
    """Install the packages beside torch in a new environment, run the tests there, and count them."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python, report = str(Path(folder, "bin", "python")), str(Path(folder, "report.xml"))
        pip = [python, "-m", "pip", "install", "--quiet"]
        # torch first and by its exact version, as in the Makefile
        subprocess.run([*pip, torch], check=True)
        environment = {**os.environ, "DS_BUILD_OPS": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run([*pip, *packages, "pillow", "pytest", "pyyaml"], env=environment, check=True)
        ignored = [f"--ignore={path}" for path in NOT_RUN]
        command = [python, "-m", "pytest", "-q", *TESTS, *ignored, "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        counts = xml.etree.ElementTree.parse(report).getroot().find("testsuite").attrib
        listed = subprocess.run([*pip[:3], "list", "--format=json"], capture_output=True, check=True)
    installed = {package["name"].lower(): package["version"] for package in json.loads(listed.stdout)}
    failed = int(counts["failures"]) + int(counts["errors"])
    names = [name for name in (*requirements(), *REPORTED) if name in installed]
    return {
        "versions": {"python": platform.python_version(), **{name: installed[name] for name in names}},
        "passed": int(counts["tests"]) - failed - int(counts["skipped"]),
        "failed": failed,
        "skipped": int(counts["skipped"]),
        "date": datetime.date.today().isoformat(),
    }


def main(torch: str) -> int:
    results = {"oldest": run(oldest(), torch), "newest": run(newest(), torch)}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(any(result["failed"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
