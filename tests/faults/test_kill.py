"""A short run of the kills; README.md says how to run it long."""

import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import arguments
import kill

pytest.importorskip("tifffile")
pytest.importorskip("timm")
pytest.importorskip("faiss")

CHEAP = (
    "synth",
    "prepare",
    "extract",
    "build",
    "extend",
    "extend-in-place",
    "calibrate",
    "score",
    "bank.save",
    "MultiBank.save",
)


@pytest.mark.slow
def test_what_is_killed_leaves_the_old_or_the_new_and_goes_on(tmp_path):
    names = ",".join(CHEAP)
    done = arguments.call("kill.py", "--kills", "24", "--commands", names, "--keep", str(tmp_path / "keep"))
    assert done.returncode == 0, done.stdout + done.stderr
    counts = arguments.totals(done.stdout)
    assert counts["kills"] >= 20
    assert counts["in-time"] > 12


@pytest.mark.slow
def test_faults_are_found(tmp_path, capfd):
    """A saver that does all of it wrong."""

    def save(out, inputs, which):
        def write():
            (out / "result").unlink(missing_ok=True)
            time.sleep(0.02)
            with (out / "result").open("wb") as file:
                for _ in range(4):
                    file.write(bytes([which + 1]) * 1000)
                    file.flush()
                    time.sleep(0.01)
            if not (out / "scratch").exists():
                (out / "scratch").write_bytes(b"")
                time.sleep(0.05)
                (out / "scratch").unlink()

        return write

    trial = kill.Trial(kill.Command("bad", save, ("result",)), tmp_path, tmp_path, tmp_path / "keep", random.Random(0))
    trial.begin()
    kinds, number = ("lost", "half-written", "stray"), 0
    while number < 30 or (number < 300 and not all(trial.counts[kind] for kind in kinds)):  # a busy core shifts them
        trial.kill(number)
        number += 1
    assert trial.counts["kills"] == number
    assert trial.counts["lost"]
    assert trial.counts["half-written"]
    assert trial.counts["stray"]
    assert "kept" in capfd.readouterr().out
