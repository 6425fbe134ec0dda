"""A folder that is being written: files are told when they are whole, once, and refused ones again when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmad_bank.bank.dumps.watching import FolderWatch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(tmp_path: Path, clock: Clock) -> FolderWatch:
    return FolderWatch(tmp_path, patience=10.0, clock=clock)


def take(watch: FolderWatch) -> list[str]:
    """Look, and take what is told."""
    told = watch.look()
    for path in told:
        with watch.taking(path):
            pass
    return [path.relative_to(watch.folder).as_posix() for path in told]


def test_a_file_is_told_once_it_stays_as_it_is(tmp_path: Path, watch: FolderWatch) -> None:
    assert take(watch) == []
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.npy").write_bytes(b"1")
    assert take(watch) == []
    (tmp_path / "sub/b.npy").write_bytes(b"12")
    (tmp_path / "a.pt").write_bytes(b"1")
    assert take(watch) == []
    assert not watch.is_settled
    assert take(watch) == ["a.pt", "sub/b.npy"]
    assert watch.is_settled
    assert take(watch) == []


def test_other_files_and_hidden_ones_are_none(tmp_path: Path, watch: FolderWatch) -> None:
    (tmp_path / ".x").mkdir()
    for name in ("notes.txt", ".a.npy", ".x/a.npy", "a.npy.tmp"):
        (tmp_path / name).write_bytes(b"1")
    assert [take(watch), take(watch)] == [[], []]
    (tmp_path / "a.npy.tmp").rename(tmp_path / "a.npy")
    assert [take(watch), take(watch)] == [[], ["a.npy"]]


def test_a_file_that_changes_is_a_new_one(tmp_path: Path, watch: FolderWatch) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    assert [take(watch), take(watch)] == [[], ["a.npy"]]
    os.utime(tmp_path / "a.npy", (1, 1))
    assert [take(watch), take(watch), take(watch)] == [[], ["a.npy"], []]


def test_what_was_taken_before_is_not_told(tmp_path: Path, watch: FolderWatch, clock: Clock) -> None:
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(b"1")
    take(watch)
    assert take(watch) == ["a.npy", "b.npy"]
    (tmp_path / "b.npy").write_bytes(b"22")
    again = FolderWatch(tmp_path, watch.taken, clock=clock)
    assert [take(again), take(again)] == [[], ["b.npy"]]


def test_files_that_are_gone_are_forgotten_unless_all_are(tmp_path: Path, watch: FolderWatch) -> None:
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(b"1")
    take(watch)
    take(watch)
    (tmp_path / "a.npy").unlink()
    take(watch)
    assert list(watch.taken) == ["b.npy"]
    (tmp_path / "b.npy").unlink()
    take(watch)
    assert list(watch.taken) == ["b.npy"]


def test_a_failure_takes_the_file_back(tmp_path: Path, watch: FolderWatch) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    watch.look()
    (path,) = watch.look()

    def fail() -> None:
        with watch.taking(path):
            assert list(watch.taken) == ["a.npy"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert watch.taken == {}
    assert take(watch) == ["a.npy"]


def test_refused_files_are_told_again_when_they_change(tmp_path: Path, watch: FolderWatch, clock: Clock) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    watch.look()
    (path,) = watch.look()
    watch.refuse(path, "half of it")
    assert (take(watch), watch.give_up()) == ([], [])
    clock.now = 9
    (tmp_path / "a.npy").write_bytes(b"12")
    assert take(watch) == []
    clock.now = 18
    assert watch.give_up() == []
    assert take(watch) == ["a.npy"]
    assert watch.left_out == {}


def test_what_stays_bad_is_left_out_once(tmp_path: Path, watch: FolderWatch, clock: Clock) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    watch.look()
    (path,) = watch.look()
    watch.refuse(path, "not good")
    clock.now = 10
    assert (take(watch), watch.give_up(), watch.give_up()) == ([], ["not good"], [])
    assert watch.left_out == {"a.npy": "not good"}
    (tmp_path / "a.npy").write_bytes(b"good")
    assert [take(watch), watch.left_out, take(watch)] == [[], {}, ["a.npy"]]


def test_the_end_does_not_wait(tmp_path: Path, watch: FolderWatch) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    watch.look()
    (path,) = watch.look()
    watch.refuse(path, "not good")
    assert watch.give_up(now=True) == ["not good"]


def test_changed_says_when_something_came(tmp_path: Path, watch: FolderWatch, clock: Clock) -> None:
    clock.now = 3
    take(watch)
    assert watch.changed == 0
    (tmp_path / "a.npy").write_bytes(b"1")
    take(watch)
    assert watch.changed == 3
    clock.now = 5
    take(watch)
    clock.now = 7
    take(watch)
    assert watch.changed == 5
