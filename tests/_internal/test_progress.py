"""Bars on a terminal name what they belong to and end at their end; nothing is silent for long; a pipe sees none."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmad_bank._internal import training
from mmad_bank._internal.progress import labelled, within
from mmad_bank._internal.training import train

START = "import sys, time\nfrom mmad_bank._internal import progress as p\np.talk(sys.stderr.isatty())\n"


def on_a_terminal(script: str, *arguments: str, columns: int = 150) -> str:
    """Return what a Python script writes to a terminal, control sequences left out."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment, close_fds=True)
    os.close(terminal)
    parts: list[bytes] = []
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        if not select.select([reader], [], [], 1)[0]:
            continue
        try:
            parts.append(os.read(reader, 65536))
        except OSError:  # the terminal's other end is closed
            break
    os.close(reader)
    assert process.wait(10) == 0, b"".join(parts)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode()).replace("\r", "\n")


def test_labels() -> None:
    assert labelled("selecting") == "selecting"
    with within("bagel", 2, 10), within("xyz bank"):
        assert labelled("selecting") == "bagel (2 of 10): xyz bank: selecting"
    assert labelled("selecting") == "selecting"


def test_a_bar_is_named_and_stays_at_its_end() -> None:
    shown = on_a_terminal(
        START + "with p.within('bagel', 1, 2), p.progress_bar('selecting', 7) as report:\n"
        "    for done in (0, 3, 6):\n        report(done)\n        time.sleep(0.4)\n"
    )
    last = [line for line in shown.splitlines() if line.strip()][-1]
    assert last.startswith("bagel (1 of 2): selecting")
    assert "100%" in last
    assert "7/7" in last
    assert "left" not in last


def test_short_bars_go() -> None:
    shown = on_a_terminal(START + "with p.progress_bar('short', 2) as report:\n    report(1)\nprint('end')\n")
    assert shown.split("short")[0].strip() == ""
    assert "end" in shown


@pytest.mark.slow
def test_what_is_waited_for_is_said_after_a_second_and_bars_take_its_place() -> None:
    shown = on_a_terminal(
        START + "with p.doing('loading the model'):\n    time.sleep(0.5)\n"
        "with p.within('bagel'), p.doing('saving'):\n    time.sleep(1.6)\n"
        "    with p.progress_bar('inside', 2):\n        time.sleep(0.3)\n"
        "with p.doing('once', until_other=True):\n    p.announce('a line')\n    time.sleep(1.3)\n"
    )
    assert "loading the model" not in shown, "half a second"
    assert "bagel: saving" in shown
    assert "inside" in shown
    assert "a line" in shown
    assert "once" not in shown


def test_in_a_pipe_nothing_is_shown() -> None:
    script = START + (
        "with p.doing('waiting'), p.progress_bar('bar', 2) as report:\n    report(1)\n    time.sleep(1.2)\n"
        "p.announce('a download')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_an_error_in_a_wait_goes_through() -> None:
    shown = on_a_terminal(
        START + "try:\n    with p.doing('loading'):\n        time.sleep(1.3)\n        raise ValueError('damaged')\n"
        "except ValueError as error:\n    print('said:', error)\n"
    )
    assert "said: damaged" in shown


def test_a_training_is_reported_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    seen: list[int] = []

    class Bar:
        def __init__(self, description: str, total: int) -> None:
            assert (description, total) == ("training line", 3)

        def __enter__(self) -> object:
            return seen.append

        def __exit__(self, *error: object) -> None:
            return None

    monkeypatch.setattr(training, "progress_bar", Bar)
    net = nn.Linear(2, 1)
    train(
        lambda step: [net(torch.ones(2)).square().sum()], {"model": net}, torch.optim.SGD(net.parameters(), 0.1),
        kind="line", caller="fit_line", arguments={"steps": 3, "seed": 0}, progress=True,
    )  # fmt: skip
    assert seen == [0, 1, 2, 3]


@pytest.mark.slow
def test_commands_name_their_steps(tmp_path: Path) -> None:
    """``build`` on a terminal says what it does from its imports on; in a pipe it is silent but for its result."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(40, 200, 32)).astype(np.float32))
    script = "import sys; from mmad_bank.cli import main; main()"
    shown = on_a_terminal(script, "build", str(tmp_path / "a.npy"), "--out", str(tmp_path / "b"), "--ratio", "50%")
    assert "Selecting the coreset" in shown
    assert "4,000 × 32" in shown
    command = [sys.executable, "-c", script, "build", str(tmp_path / "a.npy"), "--out", str(tmp_path / "c")]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""
