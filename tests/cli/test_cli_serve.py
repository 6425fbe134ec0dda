"""The command serve, as a process: its words, its signals, and what it lacks."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PROGRAM, refused

from mmad_bank import MemoryBank


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    MemoryBank(np.eye(3, dtype=np.float32)).save(folder / "tile.bank")
    return folder


def test_what_is_refused(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    (tmp_path / "keys").write_text("short\n")
    for arguments, words in (
        ((tmp_path / "none",), "none: expected a folder of models, found nothing"),
        ((models, "--max-batch", 0), "--max-batch: expected at least 1, found 0"),
        ((models, "--memory", "much"), "--memory: expected a size such as 200MB or 1.5GiB, found 'much'"),
        ((models, "--max-body", "5"), "--max-body: expected a size such as 200MB"),
        ((models, "--batch-delay", "1h"), "--batch-delay: expected 0 to 10 seconds, found 3600"),
        ((models, "--timeout", "soon"), "--timeout: expected a time such as"),
        ((models, "--api-key", tmp_path / "keys"), "--api-key: expected keys of at least 8 visible ASCII characters"),
        ((models, "--api-key", tmp_path / "no"), "cannot be read (No such file or directory)"),
        ((models, "--port", 70000), "--port: expected 0 to 65535, found 70000"),
        ((models, "--host", "203.0.113.7"), "--host: cannot listen at 203.0.113.7 port 8000"),
        ((models, "--log", "xml"), "--log: expected one of text, json, none, found 'xml'"),
    ):
        line = refused("serve", *arguments) if "--host" not in arguments else refused_at_last(*arguments)
        assert words in line, line


def refused_at_last(*arguments: Any) -> str:
    from helpers import refused_at_last as last

    return last("serve", *arguments)  # a warning comes first


def test_without_the_extra_one_line_says_what_to_install(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert refused("serve", models) == (
        "error: the service needs the package 'fastapi': pip install 'mmad-bank[serve]'\n"
    )


def test_the_package_does_not_need_the_extra() -> None:
    script = "import sys; sys.modules['fastapi'] = sys.modules['uvicorn'] = sys.modules['starlette'] = None\n"
    script += "import mmad_bank, mmad_bank.serving; print(mmad_bank.serving.Settings('x').max_batch)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "32\n"


@contextmanager
def serving(models: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command at a free port; yield the process and the address."""
    command = [*PROGRAM, "serve", str(models), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip().removeprefix("http://")
    finally:
        process.kill()
        process.communicate()


def ask(host: str) -> Any:
    connection = http.client.HTTPConnection(host, timeout=30)
    tensor = {"name": "patches", "datatype": "FP32", "shape": [1, 1, 3], "data": [1, 0, 2]}
    try:
        connection.request("POST", "/v2/models/tile/infer", json.dumps({"inputs": [tensor]}))
        return json.loads(connection.getresponse().read())["outputs"][0]["data"]
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_well(models: Path, number: signal.Signals) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with serving(models, "--log", "json") as (process, host):
        assert ask(host) == [pytest.approx(2**0.5)]
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    first, *log, last = said.splitlines()
    assert (first, last) == ("serving 1 model: tile", "stopped")
    assert [json.loads(line)["event"] for line in log] == ["model loaded", "request"]


def test_after_a_kill_it_begins_anew_as_it_was(models: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    for _ in range(2):
        with serving(models) as (process, host):
            assert ask(host) == [pytest.approx(2**0.5)]
            process.kill()
    assert sorted(path.name for path in models.iterdir()) == ["tile.bank"]
