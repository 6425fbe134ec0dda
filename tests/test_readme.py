"""README's Python example runs, and its table names every command and only options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmad_bank.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
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
