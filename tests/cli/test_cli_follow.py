"""``mmad-bank follow``: takes what comes whole, says what it leaves out, and goes on where it was stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import PROGRAM, call, facts, good, refused, refused_at_last

from mmad_bank.bank import MemoryBank, StreamingBank
from mmad_bank.cli._dumps import Reading
from mmad_bank.cli._following import Following, Times
from mmad_bank.errors import InputError

QUICK = ("--poll", "50ms", "--until-idle", "300ms")


def images(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(2, 30, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(4):
        np.save(tmp_path / f"in/{number}.npy", images(number))
    return tmp_path / "in"


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return tmp_path / "line.bank"


def expected(numbers: range) -> StreamingBank:
    stream = StreamingBank(25)
    for number in numbers:
        stream.update(images(number))
    return stream


def same(path: Path, stream: StreamingBank) -> bool:
    loaded = MemoryBank.load(path)
    return np.array_equal(loaded.vectors, stream.bank.vectors) and np.array_equal(
        loaded.source_rows, stream.bank.source_rows
    )


def test_it_takes_the_files_that_are_there(folder: Path, bank: Path) -> None:
    told = facts("follow", bank, folder, "--bank-size", 25, *QUICK)
    stream = expected(range(4))
    assert same(bank, stream)
    assert (told["rows"], told["new_rows"], told["files"], told["size"]) == (240, 240, 4, 25)
    assert told["radius"] == pytest.approx(stream.radius)
    assert told["optimum"] == pytest.approx(stream.optimum)
    assert told["radius"] <= told["factor"] * told["optimum"]
    assert told["left_out"] == {}
    origin = MemoryBank.load(bank).provenance([0])[0]
    assert (origin.file, origin.image) == (str(folder / "0.npy"), 0)


def test_it_is_not_idle_before_it_has_taken_what_is_there(folder: Path, bank: Path) -> None:
    assert facts("follow", bank, folder, "--bank-size", 25, "--poll", "100ms", "--until-idle", "10ms")["files"] == 4


def test_started_again_it_goes_on(folder: Path, bank: Path) -> None:
    good("follow", bank, folder, "--bank-size", 25, *QUICK)
    before = bank.read_bytes()
    assert facts("follow", bank, folder, *QUICK)["new_rows"] == 0
    assert bank.read_bytes() == before
    for number in range(4, 9):
        np.save(folder / f"{number}.npy", images(number))
    assert facts("follow", bank, folder, "--bank-size", 25, *QUICK)["files"] == 5
    assert same(bank, expected(range(9)))


def test_the_summary_says_what_is_proved(folder: Path, bank: Path) -> None:
    text = good("follow", bank, folder, "--bank-size", 25, "--standardize", "--factor", 3, *QUICK)
    stream = f"at most 25 vectors of 240 rows seen; the best 25 have a radius of {StreamingBank.load(bank).optimum:.6g}"
    for words in ("no row seen is farther", stream, "240 rows of 4 files", "standardized by"):
        assert words in text
    assert stream in good("info", bank)
    assert StreamingBank.load(bank).factor == 3


def test_what_cannot_be_used_is_left_out(folder: Path, bank: Path) -> None:
    (folder / "broken.npy").write_bytes((folder / "0.npy").read_bytes()[:200])
    bad = images(0)
    bad[1, 3, 2] = np.nan
    np.save(folder / "nan.npy", bad)
    np.save(folder / "wide.npy", np.zeros((2, 30, 9), np.float32))
    result = call("follow", bank, folder, "--bank-size", 25, *QUICK, "--json")
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert set(told["left_out"]) == {str(folder / name) for name in ("broken.npy", "nan.npy", "wide.npy")}
    assert result.stderr.count("left out: ") == 3
    for words in ("broken.npy: truncated", "image 1, patch 3 holds NaN", "wide.npy: expected vectors of length 8"):
        assert words in result.stderr
    assert same(bank, expected(range(4)))
    np.save(folder / "broken.npy", images(4))
    (folder / "nan.npy").unlink()
    (folder / "wide.npy").unlink()
    assert facts("follow", bank, folder, *QUICK)["files"] == 1
    assert same(bank, expected(range(5)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--bank-size: expected the largest number of vectors of the new bank"),
        (["--bank-size", 0], "--bank-size: expected 1 to"),
        (["--bank-size", 5, "--factor", 2], "--factor: expected at least 2.17"),
        (["--bank-size", 5, "--poll", "none"], "--poll: expected a time above 0"),
        (["--bank-size", 5, "--until-idle", "soon"], "--until-idle: expected a time such as"),
    ],
)
def test_options_out_of_range(folder: Path, bank: Path, options: list[object], words: str) -> None:
    assert words in refused("follow", bank, folder, *options)
    assert not bank.exists()


def test_places_that_do_not_fit(tmp_path: Path, folder: Path, bank: Path) -> None:
    assert "expected a folder that feature files come into" in refused(
        "follow", bank, tmp_path / "no", "--bank-size", 5
    )
    inside = folder / "b.bank"
    assert "lies in the folder to be followed" in refused("follow", inside, folder, "--bank-size", 5)
    (tmp_path / "empty").mkdir()
    assert "found none" in refused("follow", bank, tmp_path / "empty", "--bank-size", 5, *QUICK)
    (tmp_path / "empty/a.npy").write_bytes(b"?")
    assert "none that can be used" in refused_at_last("follow", bank, tmp_path / "empty", "--bank-size", 5, *QUICK)
    assert not bank.exists()


def test_options_that_are_not_the_banks(tmp_path: Path, folder: Path, bank: Path) -> None:
    good("follow", bank, folder, "--bank-size", 25, *QUICK)
    assert "--bank-size: expected 25, as" in refused("follow", bank, folder, "--bank-size", 5, *QUICK)
    assert "--factor: expected 4, as" in refused("follow", bank, folder, "--factor", 3, *QUICK)
    assert "--standardize: expected nothing" in refused("follow", bank, folder, "--standardize", *QUICK)
    assert "expected BANK FOLDER" in refused("follow", folder, bank, "--bank-size", 25)
    good("build", folder, "--out", tmp_path / "built.bank")
    assert "expected the bank of a stream" in refused("follow", tmp_path / "built.bank", folder, *QUICK)


def test_a_calibration_stays_in_the_file(tmp_path: Path, folder: Path, bank: Path) -> None:
    good("follow", bank, folder, "--bank-size", 25, *QUICK)
    np.save(tmp_path / "held.npy", np.random.default_rng(99).normal(size=(20, 30, 8)).astype(np.float32))
    good("calibrate", bank, tmp_path / "held.npy", "--in-place")
    np.save(folder / "far.npy", images(0) + 9)
    good("follow", bank, folder, *QUICK)
    calibration = MemoryBank.load(bank).calibration
    assert calibration is not None
    assert calibration.outdated


# Processes that are stopped, and files that grow meanwhile.


@contextmanager
def following(bank: Path, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [*PROGRAM, "follow", str(bank), str(folder), "--bank-size", "25", "--poll", "50ms", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def rows_in(bank: Path) -> int:
    return StreamingBank.load(bank).rows_seen if bank.exists() else 0


def write_in_pieces(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        for first in range(0, len(content), len(content) // 3):
            file.write(content[first : first + len(content) // 3])
            file.flush()
            time.sleep(0.2)  # several looks


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow)],
)
def test_files_that_grow_are_waited_for_and_a_signal_saves(
    folder: Path, bank: Path, number: int, code: int, word: str
) -> None:
    np.save(bank.with_name("whole.npy"), images(4))
    with following(bank, folder, "--save-every", "50ms") as process:
        wait_for(lambda: rows_in(bank) == 240)
        assert refused("follow", bank, folder, *QUICK).endswith(f"no other process follows into, found {bank} in use\n")
        write_in_pieces(folder / "4.npy", bank.with_name("whole.npy").read_bytes())
        wait_for(lambda: rows_in(bank) == 300)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == f"error: {word}; {bank} is saved with 300 rows seen\n"
    assert same(bank, expected(range(5)))


def test_whatever_ends_it_the_bank_is_saved(folder: Path, bank: Path) -> None:
    def show(doing: str | None, line: str | None) -> None:
        if doing is not None and doing.startswith("240 rows"):
            raise KeyboardInterrupt

    times = Times(poll=0.02, patience=30.0, save_every=3600.0, until_idle=None)
    work = Following(StreamingBank(25), bank, folder, Reading(), times, show)
    with pytest.raises(KeyboardInterrupt) as stopped:
        work.run()
    assert same(bank, expected(range(4)))
    assert stopped.value.__dict__["note"] == f"{bank} is saved with 240 rows seen"


def test_a_killed_process_costs_nothing(folder: Path, bank: Path) -> None:
    with following(bank, folder, "--save-every", "50ms") as process:
        wait_for(lambda: rows_in(bank) > 0)
        process.kill()
        process.wait()
    for number in range(4, 8):
        np.save(folder / f"{number}.npy", images(number))
    good("follow", bank, folder, *QUICK)
    assert same(bank, expected(range(8)))
    assert rows_in(bank) == 480


def test_a_bank_that_cannot_be_standardized_yet_is_saved_later(folder: Path, bank: Path) -> None:
    np.save(folder / "-first.npy", np.ones((2, 30, 8), np.float32))
    told = facts("follow", bank, folder, "--bank-size", 25, "--standardize", "--save-every", "1ms", *QUICK)
    assert (told["files"], told["left_out"]) == (5, {})


def test_a_bank_that_is_removed_meanwhile_is_written_again(folder: Path, bank: Path) -> None:
    stream = expected(range(2))
    following = Following(stream, bank, folder, Reading(), Times(0.01, 1.0, 60.0, 0.05), lambda doing, line: None)
    following._save()
    bank.unlink()
    following._save()
    assert same(bank, stream)


def test_what_another_program_wrote_meanwhile_is_left_alone(folder: Path, bank: Path) -> None:
    stream = expected(range(2))
    stream.save(bank)
    following = Following(stream, bank, folder, Reading(), Times(0.01, 1.0, 60.0, 0.05), lambda doing, line: None)
    expected(range(3)).save(bank)  # as a calibration would be
    found = bank.read_bytes()
    stream.update(images(3))
    with pytest.raises(InputError, match=r"^BANK: expected .* as it was saved last, found it changed by another"):
        following._save()
    assert bank.read_bytes() == found


def test_a_pipe_is_left_out(folder: Path, bank: Path) -> None:
    os.mkfifo(folder / "pipe.npy")
    told = json.loads(call("follow", bank, folder, "--bank-size", 25, "--json", *QUICK).stdout)
    assert list(told["left_out"]) == [str(folder / "pipe.npy")]
