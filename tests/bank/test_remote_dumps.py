"""Features behind addresses: read as files are, by whichever process needs them."""

from __future__ import annotations

import functools
import http.server
import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import good

from mmad_bank import MemoryBank
from mmad_bank.bank.dumps import open_dump, remote
from mmad_bank.errors import InputError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Serve a folder over HTTP."""
    pytest.importorskip("aiohttp")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def write(folder: Path) -> tuple[np.ndarray, list[Path]]:
    """Write features of three images to a file of each kind; return them, and the files."""
    from safetensors.numpy import save_file

    rows = np.random.default_rng(0).standard_normal((3, 10, 6), dtype=np.float32)
    np.save(folder / "a.npy", rows)
    np.savez(folder / "b.npz", features=rows, names=["x", "y", "z"])
    save_file({"features": rows, "other": rows[0]}, folder / "c.safetensors")
    torch.save(torch.from_numpy(rows), folder / "d.pt")
    return rows, sorted(folder.iterdir())


def test_all_kinds_of_files_are_read_over_http(served: str, tmp_path: Path) -> None:
    rows, files = write(tmp_path)
    dump = open_dump([f"{served}/{file.name}" for file in files])
    local = open_dump(files)
    assert torch.equal(dump.take(torch.arange(120)), torch.from_numpy(np.concatenate([rows.reshape(-1, 6)] * 4)))
    assert [source.file for source in dump.sources] == [f"{served}/{file.name}" for file in files]
    assert [source._replace(file="") for source in dump.sources] == [
        source._replace(file="") for source in local.sources
    ]
    bank = MemoryBank.build(f"{served}/b.npz", size=5)
    assert torch.equal(bank.vectors, MemoryBank.build(tmp_path / "b.npz", size=5).vectors)
    assert bank.provenance([0])[0].file == f"{served}/b.npz"


def test_the_shell_takes_addresses_too(tmp_path: Path) -> None:
    write(tmp_path)
    good("build", f"file://{tmp_path}/a.npy", "--out", tmp_path / "bank", "--bank-size", 5)
    bank = MemoryBank.load(tmp_path / "bank")
    assert torch.equal(bank.vectors, MemoryBank.build(tmp_path / "a.npy", size=5).vectors)
    assert bank.sources[0].file == f"file://{tmp_path}/a.npy"
    with pytest.raises(InputError, match="expected images that the bank was not built from"):
        bank.calibrate(f"file://{tmp_path}/a.npy")


def test_another_process_reads_them_anew(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    rows, files = write(tmp_path)
    dump = open_dump([f"file://{file}" for file in files])
    sent = cloudpickle.dumps(dump)
    assert len(sent) < 20_000
    remote._copy.cache_clear()
    assert torch.equal(pickle.loads(sent).read(30, 30), torch.from_numpy(rows.reshape(-1, 6)))


def test_a_file_that_another_process_finds_changed_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3), np.float32))
    dump = open_dump(f"file://{tmp_path}/a.npy")
    remote._copy.cache_clear()
    assert not dump.read(0, 4).any()  # a new copy, of the same content
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    assert not dump.read(0, 4).any()
    remote._copy.cache_clear()
    with pytest.raises(InputError, match=rf"^file://{tmp_path}/a\.npy: expected the file as it was when it was opened"):
        dump.read(0, 4)


def test_a_few_copies_are_kept_and_the_others_made_anew(tmp_path: Path) -> None:
    rows = torch.randn(40, 5, 3)
    for number, image in enumerate(rows):
        np.save(tmp_path / f"{number}.npy", image.numpy())
    dump = open_dump([f"file://{tmp_path}/{number}.npy" for number in range(40)])
    assert torch.equal(dump.take(torch.arange(200)), rows.reshape(-1, 3))
    assert remote._copy.cache_info().currsize <= 16


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.npy", None, "cannot be fetched "),
        ("a.txt", b"a", "expected a .npy, .*file, found '.txt'"),
        ("bad.npy", b"no array", "damaged or not a .npy file"),
        ("bad.pt", b"cos\nsystem\n(S'true'\ntR.", "bad.pt: "),
    ],
)
def test_what_cannot_be_read_is_told_by_its_address(name: str, content: bytes | None, words: str) -> None:
    files = fsspec.filesystem("memory")
    if content is not None:
        files.pipe(f"/{name}", content)
    with pytest.raises(InputError, match=words) as said:
        open_dump(f"memory://{name}")
    assert "/proc/" not in str(said.value)
    assert str(said.value).startswith(f"memory://{name}: ")
    assert "\n" not in str(said.value)
    left_out: dict[str, str] = {}
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 3), np.float32))
    files.pipe("/good.npy", buffer.getvalue())
    assert len(open_dump([f"memory://{name}", "memory://good.npy"], left_out=left_out)) == 2
    assert list(left_out) == [f"memory://{name}"]
