"""Files are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmad_bank._files import cache_dir, replacing


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


def test_a_full_disk_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left.*a\.npz"):
        with replacing(tmp_path / "a.npz"):
            raise OSError(28, "No space left on device")


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with replacing(tmp_path / "b") as partial:
            partial.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640


def test_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "a"):
        pass


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMAD_BANK_CACHE", "/one")
    assert cache_dir() == Path("/one")
    monkeypatch.delenv("MMAD_BANK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_dir() == Path("/two/mmad-bank")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/three")
    assert cache_dir() == Path("/three/.cache/mmad-bank")


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "bank.safetensors"
    code = (
        "import os, signal, sys; from mmad_bank._files import replacing\n"
        "with replacing(sys.argv[1]) as partial: partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert not target.exists()
    with replacing(target) as outer:
        outer.write_text("first")
        with replacing(target) as inner:  # a write that goes on at the same time keeps its own file
            inner.write_text("second")
        assert outer.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]
    assert target.read_text() == "first"
