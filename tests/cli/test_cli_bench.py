"""``mmad-bank bench`` at tiny sizes: what it measures, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("timm")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmad_bank.cli", "bench", "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_contestant_is_timed_by_stage_and_its_memory_counted() -> None:
    done = run("--methods", "M3DM,CFM", "--rounds", "2", "--batch", "1,2", "--json")
    assert done.returncode == 0, done.stderr
    m3dm, cfm = json.loads(done.stdout)["results"]
    assert (m3dm["name"], cfm["name"]) == ("M3DM", "CFM")
    for result in (m3dm, cfm):
        assert len(result["latencies"]) == 2
        assert sum(result["stages"].values()) == pytest.approx(result["median"], rel=0.5)
        assert set(result["throughput"]) == {"1", "2"}
        assert result["memory"] == result["weights"] + result["banks"] + result["activations"]
        assert result["peak"] > result["weights"] > 0
    assert m3dm["banks"] > 0 == cfm["banks"]
    assert "bank search and scores" in m3dm["stages"]
    assert "mappings" in cfm["stages"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "Magic"), "error: methods: expected some of PatchCore"),
        (("--batch", "one"), "error: --batch: expected batch sizes such as 1,8, found 'one'"),
        (("--rounds", "0"), "error: --rounds: expected at least 1, found 0"),
        (("--methods", "M3DM", "--vectors", "99999"), "error: vectors: expected 1 to 1568"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
