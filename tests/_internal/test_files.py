"""Files are whole or not there."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mmad_bank._internal import folders
from mmad_bank._internal.files import cache_dir, replacing, write_text
from mmad_bank._internal.folders import read_folder, replacing_folder
from mmad_bank.errors import InputError


def test_replaces_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "a.npz"
    target.write_text("old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):  # noqa: PT012 - the context manager is what is tested
            with replacing(target) as partial:
                partial.write_text("half")
                assert target.read_text() == "old"
                raise error
        assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    with replacing(target) as partial:
        assert partial.suffix == ".npz"
        partial.write_text("new")
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_text_is_utf_8_and_names_that_are_none_are_escaped(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    write_text(target, "é \udce9.png")
    assert target.read_bytes() == "é ".encode() + rb"\udce9.png"
    with pytest.raises(TypeError):
        write_text(target, 3)  # type: ignore[arg-type]
    assert target.read_bytes().endswith(b".png")
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.npz: cannot be written \(the disk is full: No space left"):
        with replacing(tmp_path / "a.npz"):
            raise OSError(28, "No space left on device")
    with pytest.raises(InputError, match=r"m/b/c\.npy: cannot be written \(the disk is full"):
        with replacing_folder(tmp_path / "m") as partial:
            raise OSError(28, "No space left on device", str(partial / "b" / "c.npy"))
    with pytest.raises(InputError, match=r"m/a\.npz: cannot be written \(the disk is full") as caught:
        with replacing_folder(tmp_path / "m") as partial, replacing(partial / "a.npz"):
            raise OSError(28, "No space left on device")
    assert ".partial" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_files_are_left_alone(tmp_path: Path) -> None:
    for writer in (replacing, replacing_folder):
        with pytest.raises(FileNotFoundError, match="other"), writer(tmp_path / "a"):
            (tmp_path / "other" / "file").read_bytes()
        with pytest.raises(RuntimeError, match="of another kind"), writer(tmp_path / "a"):
            raise RuntimeError("of another kind")
    assert list(tmp_path.iterdir()) == []


_FULL_DISK = """
import sys, numpy as np, torch
from pathlib import Path
from mmad_bank._internal.files import replacing, reserve
from mmad_bank._internal.folders import replacing_folder
from mmad_bank._internal.tensor_files import write_tensors
from mmad_bank.errors import InputError
disk = Path(sys.argv[1])
old = {path: path.read_bytes() for path in (disk / "a.npy", disk / "m" / "a.npy")}
large = np.ones(1 << 22, np.uint8)
writers = {
    "np.save": lambda path: np.save(path, large),
    "torch.save": lambda path: torch.save(torch.from_numpy(large), path),
    "tensors": lambda path: write_tensors(path, {"a": torch.from_numpy(large)}),
    "text": lambda path: path.write_bytes(large),
    "mapping": lambda path: reserve(path, large.nbytes),
}
for name, write in writers.items():
    for target, writer in (("a.npy", replacing), ("m", replacing_folder)):
        try:
            with writer(disk / target) as partial:
                write(partial if target == "a.npy" else partial / "a.npy")
        except InputError as error:
            print(name, str(error).replace(str(disk), ""))
assert old == {path: path.read_bytes() for path in old}
assert sorted(path.name for path in disk.rglob("*")) == ["a.npy", "a.npy", "m"]
"""


def test_every_writer_tells_a_disk_that_is_really_full(tmp_path: Path) -> None:
    def isolated(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["unshare", "-rm", "sh", "-ec", command], capture_output=True, text=True, check=False)

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=2m tmpfs {disk}"
    if shutil.which("unshare") is None or isolated(mount).returncode:
        pytest.skip("no mount namespaces here")
    fill = f"mkdir {disk}/m; echo old > {disk}/a.npy; echo old > {disk}/m/a.npy"
    done = isolated(f"{mount}; {fill}; {sys.executable} -c '{_FULL_DISK}' {disk}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert all("cannot be written (the disk is full" in line for line in lines), lines
    assert [line.split(" ")[1].rstrip(":") for line in lines[:2]] == ["/a.npy", "/m"]


def test_modes_follow_the_umask_and_then_the_old_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        for _ in range(2):
            with replacing(tmp_path / "b") as partial:
                partial.write_text("x")
            with replacing_folder(tmp_path / "m") as partial:
                (partial / "b").write_text("x")
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("b", "m", "m/b")] == [0o640, 0o750, 0o640]
    for name, mode in (("b", 0o600), ("m", 0o700)):
        (tmp_path / name).chmod(mode)
    with replacing(tmp_path / "b") as partial:
        partial.write_text("y")
    with replacing_folder(tmp_path / "m") as partial:
        pass
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("b", "m")] == [0o600, 0o700]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    cases = [
        (replacing, "none/a", "none/a: cannot be written (its folder"),
        (replacing, "file/a", "file/a: cannot be written (Not a directory"),
        (replacing, "folder", "folder: expected a file to write, found a folder"),
        (replacing, "pipe", "pipe: expected a file to write, found a device or pipe"),
        (replacing_folder, "file", "file: expected a folder to write, found a file"),
        (replacing_folder, "file/a", "file/a: cannot be written ("),
        (replacing, "n" * 300, "cannot be written (File name too long"),
    ]
    for writer, name, message in cases:
        with pytest.raises(InputError, match=re.escape(message)), writer(tmp_path / name):
            pytest.fail("nothing to write into")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files")
def test_a_place_that_takes_no_files_is_named() -> None:
    """Linux's /proc answers as if the folder were gone, however often it is asked."""
    for writer in (replacing, replacing_folder):
        with pytest.raises(InputError, match=r"^/proc/self/x: cannot be written"), writer("/proc/self/x"):
            pass


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs root to become another user")
def test_a_folder_that_is_read_only_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        for writer in (replacing, replacing_folder):
            with pytest.raises(
                InputError, match=r"a: cannot be written \(Permission denied: its folder .* not writable"
            ):
                with writer(tmp_path / "a"):
                    pytest.fail("nothing to write into")
    finally:
        os.seteuid(0)


NAMES = [
    "plain",
    "two.words.npy",
    "a b\n'*[?",
    os.fsdecode(b"\xff\xfe.npy"),
    "n" * 255,
    "ü" * 120 + ".safetensors",
    ".x",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_that_the_system_allows(name: str, tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replacing(tmp_path / name) as partial:
            partial.write_text(text)
        with replacing_folder(tmp_path / "in" / name) as partial:
            (partial / name).write_text(text)
        kill_in(f"replacing_folder({str(tmp_path / 'in' / name)!r})")
        kill_in(f"replacing({str(tmp_path / name)!r})")
        assert len(list(tmp_path.iterdir())) == 3
    with replacing(tmp_path / name), replacing_folder(tmp_path / "in" / name):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "in"])
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(Path("there", name))  # to nothing yet, and then to what is written
    for text in ("1", "2"):
        with replacing(tmp_path / "file") as partial:
            partial.write_text(text)
        with replacing_folder(tmp_path / "folder") as partial:
            (partial / "a").write_text(text)
        assert (tmp_path / "there" / "file").read_text() == (tmp_path / "there" / "folder" / "a").read_text() == text
    assert all((tmp_path / name).is_symlink() for name in ("file", "folder"))


def kill_in(writer: str, work: str = "pass") -> None:
    """Kill a process within the block of a writer."""
    pid = os.fork()
    if pid == 0:
        with eval(writer) as partial:
            (partial / "a" if partial.is_dir() else partial).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_killed_processes_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    kill_in(f"replacing({str(tmp_path / 'a.npy')!r})")
    kill_in(f"replacing_folder({str(tmp_path / 'b')!r})")
    (tmp_path / ".c.0123abcd.partial.npy").write_text("of version 0.1")
    (tmp_path / ".other.tmp").write_text("mine")
    (tmp_path / ".d.0123abcd.partial").write_text("of another name")
    with replacing(tmp_path / "c.npy") as outer:
        outer.write_text("first")
        with replacing(tmp_path / "c.npy") as inner:  # a write that goes on at the same time keeps its own file
            inner.write_text("second")
        with replacing_folder(tmp_path / "e"):
            pass
        assert outer.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".d.0123abcd.partial", ".other.tmp", "c.npy", "e"]
    assert (tmp_path / "c.npy").read_text() == "first"


def test_two_writers_at_once_both_succeed(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(25):
            with replacing(tmp_path / "a") as partial:
                partial.write_text(f"{number}" * 1000)
            with replacing_folder(tmp_path / "m") as partial:
                for name in "ab":
                    (partial / name).write_text(f"{number}" * 1000)

    write(0)
    run_forked([lambda: write(1), lambda: write(2), lambda: look(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "m"]


def look(folder: Path) -> None:
    """Read again and again what others replace."""
    for _ in range(80):
        assert len(set((folder / "a").read_text())) == 1
        found = read_folder(folder / "m", lambda: (folder / "m" / "a").read_text() + (folder / "m" / "b").read_text())
        assert len(found) == 2000
        assert len(set(found)) == 1


def run_forked(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks in processes of their own."""
    children = []
    for task in tasks:
        pid = os.fork()
        if pid == 0:
            try:
                task()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(tasks)


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_killed_writer_leaves_the_old_folder_or_the_new_one(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "renames":
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    target = tmp_path / "m"

    def write(number: int) -> None:
        with replacing_folder(target) as partial:
            for name in "abc":
                (partial / name).write_text(f"{number}" * 1000)

    def write_on() -> None:
        for number in range(100_000):
            write(number % 10)

    write(0)
    draw = random.Random(0)
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            write_on()
        time.sleep(draw.uniform(0.0, 0.01))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = read_folder(target, lambda: "".join((target / name).read_text() for name in "abc"))
        assert len(found) == 3000
        assert len(set(found)) == 1
    write(0)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("reader", [True, False], ids=["reader", "writer"])
@pytest.mark.parametrize("name", [".m.mmad-0123abcd.old", ".m.0123abcd.old"], ids=["now", "version 0.1"])
def test_a_folder_between_two_renames_comes_back(name: str, reader: bool, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a").write_text("old")
    (tmp_path / ".m.more.0123abcd.old").mkdir()  # of a folder of another name
    if reader:
        assert read_folder(tmp_path / "m", (tmp_path / "m" / "a").read_text) == "old"
    else:
        with pytest.raises(KeyError), replacing_folder(tmp_path / "m"):
            raise KeyError
        assert (tmp_path / "m" / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.more.0123abcd.old", "m"]


def test_a_writer_waits_for_readers(tmp_path: Path) -> None:
    target = tmp_path / "m"
    with replacing_folder(target) as partial:
        (partial / "a").write_text("old")

    def write() -> None:
        with replacing_folder(target) as partial:
            (partial / "a").write_text("new")

    def read() -> str:
        writer.start()
        time.sleep(0.1)
        return (target / "a").read_text()

    writer = threading.Thread(target=write)
    assert read_folder(target, read) == "old"
    writer.join()
    assert (target / "a").read_text() == "new"


def test_everything_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, exchange, rename = os.fsync, folders._exchange, os.rename

    def name_of(path: str | Path) -> str:
        return re.sub(r"\.m\.mmad-\w+\.partial", "NEW", os.path.relpath(path, tmp_path))

    def note_sync(handle: int) -> None:
        events.append("sync " + name_of(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(folders, "_exchange", lambda *names: (events.append("swap"), exchange(*names))[1])
    monkeypatch.setattr(os, "rename", lambda *names: (events.append("swap"), rename(*names))[1])
    for _ in range(2):
        events.clear()
        with replacing_folder(tmp_path / "m") as partial:
            (partial / "banks").mkdir()
            (partial / "banks" / "rgb").write_text("1")
            (partial / "model.json").write_text("2")
        *before, swap, after = events
        assert sorted(before) == ["sync NEW", "sync NEW/banks", "sync NEW/banks/rgb", "sync NEW/model.json"]
        assert (swap, after) == ("swap", "sync .")


def test_a_folder_of_very_many_files_is_not_listed_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    listdir = os.listdir

    def slow(folder: Path) -> list[str]:
        calls.append(folder)
        time.sleep(0.01)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", slow)
    for number in range(20):
        with replacing(tmp_path / f"{number}"):
            pass
    assert len(calls) <= 3


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMAD_BANK_CACHE", "/one")
    assert cache_dir() == Path("/one")
    monkeypatch.delenv("MMAD_BANK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_dir() == Path("/two/mmad-bank")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/three")
    assert cache_dir() == Path("/three/.cache/mmad-bank")
