"""The gate and the workflows call the same scripts, and a source distribution has what it takes to build."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("lint", "docs", "test")


def workflow(name: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    read: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows" / f"{name}.yml").read_text())
    return read


def commands(jobs: dict[str, Any]) -> list[str]:
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_gate_and_a_workflow_call_every_script(name: str) -> None:
    assert os.access(ROOT / ".ci" / name, os.X_OK)
    assert re.search(rf"bash \.ci/{name}\b", (ROOT / ".ci/run").read_text())
    called = [line.split()[0] for line in commands(workflow("checks")["jobs"]) if line.startswith(".ci/")]
    assert called.count(f".ci/{name}") == 1


def test_every_supported_python_is_tested_and_has_a_wheel() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    versions = workflow("checks")["jobs"]["test"]["strategy"]["matrix"]["python"]
    wheels = re.findall(r'"cp3(\d+)-\*"', settings)
    assert versions == [f"3.{minor}" for minor in wheels]
    assert f'requires-python = ">={versions[0]}"' in settings


def test_every_job_ends_and_none_may_write() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        read = workflow(path.stem)
        assert read["permissions"] == {"contents": "read"}
        assert all(job["timeout-minutes"] <= 120 for job in read["jobs"].values())
        assert "secrets." not in path.read_text()


def test_the_check_of_a_wheel_works(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile((ROOT / ".ci/check_wheel.py").read_text(), "check_wheel.py", "exec"), {})
    assert "100 vectors" in capsys.readouterr().out


def named_groups(script: str) -> dict[str, list[str]]:
    """Return the lists of paths in .ci/test, without the list of them all."""
    lists = re.findall(r"^(\w+)=\((tests/.+)\)$", script, re.MULTILINE)
    return {name: paths.split() for name, paths in lists}


def test_the_gate_runs_the_tests_that_pytest_leaves_out_by_itself() -> None:
    settings, script = (ROOT / "pyproject.toml").read_text(), (ROOT / ".ci/test").read_text()
    assert "-m 'not slow'" in settings
    named = named_groups(script)
    assert all((ROOT / path).exists() for paths in named.values() for path in paths)
    ignored, *_ = re.findall(r"^named=\((.+)\)$", script, re.MULTILINE)
    assert re.findall(r"\$\{(\w+)\[@\]\}", ignored) == list(named), "the rest leaves out what is in a group"


_PYTEST = """case "$*" in
"-m slow --ignore="*) kind=rest; code={rest} ;;
"-m slow {first}") kind=first; code={named} ;;
"-m slow tests/"*) kind=named; code=0 ;;
"") kind=fast; code={fast} ;;
*) echo "unknown: $*"; exit 0 ;;
esac
[[ $kind != {waits} ]] || sleep 0.5
echo "ran $kind: $*"
exit $code"""


@pytest.mark.parametrize("waits", ["fast", "first", "none"])
@pytest.mark.parametrize(("fast", "named", "rest"), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 1)])
def test_the_script_of_tests_fails_where_any_run_does(
    fast: int, named: int, rest: int, waits: str, tmp_path: Path
) -> None:
    """And every group is run once, whichever core is through first."""
    groups = named_groups((ROOT / ".ci/test").read_text())
    first = next(iter(groups.values()))
    script = _PYTEST.format(fast=fast, named=named, rest=rest, first=" ".join(first), waits=waits)
    for name, text in {"mmad-bank": "exit 0", "pytest": script}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", ROOT / ".ci/test"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(fast or named or rest)
    said = [line for line in done.stdout.splitlines() if line and not line.startswith("==")]
    words = {name: f"-m slow {' '.join(paths)}" for name, paths in groups.items()}
    ignored = [f"--ignore={path}" for paths in groups.values() for path in paths]
    assert said[0] == "ran fast: "
    assert sorted(said[1:]) == sorted([
        f"ran rest: -m slow {' '.join(ignored)}",
        *(f"ran {'first' if own.endswith(' '.join(first)) else 'named'}: {own}" for own in words.values()),
    ])  # fmt: skip
    assert not list(tmp_path.glob("mmad-bank-slow.*"))
