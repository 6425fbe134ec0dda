"""A short run of the fuzzing of readers; README.md says how to run it long."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import arguments
import fuzz
import readers

pytest.importorskip("tifffile")
pytest.importorskip("timm")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_no_reader_fails_in_another_way_than_it_promises(tmp_path):
    leave = {"patchcore", "m3dm", "cfm", "checkpoint-old", "npy-fortran", "mask-1", "png-palette", "tiff-packed"}
    names = ",".join(reader.name for reader in readers.readers("") if reader.name not in leave)
    done = arguments.call("fuzz.py", "--mutants", "600", "--readers", names, "--keep", str(tmp_path / "keep"))
    assert done.returncode == 0, done.stdout + done.stderr
    counts = arguments.totals(done.stdout)
    assert counts["mutants"] >= 580
    assert counts["read"] > 50
    assert counts["refused"] > 200


@pytest.mark.slow
def test_faults_are_found_and_kept(tmp_path, monkeypatch, capfd):
    """A reader that fails in every way that is looked for."""
    import faulthandler
    import os
    import time

    def read(path):
        data = path.read_bytes()
        number = int.from_bytes(data[:1], "little") % 7
        if data == b"good":
            return None
        if number == 0:
            raise KeyError("no such thing")
        if number == 1:
            raise fuzz_error("two\nlines")
        if number == 2:
            faulthandler.disable()  # pytest's, which this process inherits, would print a stack for each into the log
            os.abort()
        if number == 3:
            while True:
                time.process_time()
        if number == 4:
            bytearray(300 << 20)
        if number == 5:
            (tmp_path / "ran").write_text("")
        return None

    from mmad_bank.errors import InputError as fuzz_error

    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    changes = [bytes([65 + n]) for n in range(7)]
    reader = readers.Reader(
        "bad", lambda path: path.write_bytes(b"good"), read, lambda file: (lambda rng, data: rng.choice(changes),)
    )
    found = fuzz.Run(reader, 0, tmp_path, tmp_path / "keep").run(24)
    assert all(found[kind] for kind in (*fuzz.FAULTS, "read")), found
    assert sum(found.values()) == 24
    assert list((tmp_path / "keep").iterdir())
    assert "--replay" in capfd.readouterr().out
