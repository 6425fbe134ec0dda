"""``mmad-bank build``, ``extend``, ``score`` and ``info``: what they write, what they print, and how they refuse."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PROGRAM, call, facts, good, refused

import mmad_bank
from mmad_bank.bank import MemoryBank


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 50, 16)).astype(np.float32)


@pytest.fixture
def dump(tmp_path: Path, features: np.ndarray) -> Path:
    np.save(tmp_path / "features.npy", features)
    return tmp_path / "features.npy"


@pytest.fixture
def bank(tmp_path: Path, dump: Path) -> Path:
    good("build", dump, "--out", tmp_path / "bank.safetensors", "--ratio", "0.1")
    return tmp_path / "bank.safetensors"


def test_build_writes_what_the_library_would(tmp_path: Path, dump: Path, features: np.ndarray) -> None:
    options = ["--bank-size", 20, "--projection-dim", 8, "--seed", 3, "--start", 5, "--standardize"]
    report = facts("build", dump, "--out", tmp_path / "b", *options)
    expected = MemoryBank.build(features, size=20, projection_dim=8, seed=3, start=5, standardize=True)
    loaded = MemoryBank.load(tmp_path / "b")
    assert torch.equal(loaded.vectors, expected.vectors)
    assert torch.equal(loaded.source_rows, expected.source_rows)
    assert loaded.standardization == expected.standardization
    assert (report["rows"], report["vectors"], report["dim"]) == (300, 20, 16)
    assert report["file_bytes"] == (tmp_path / "b").stat().st_size
    assert report["radius"] == pytest.approx(expected.radius)
    assert set(report["seconds"]) == {"build", "save"}


def test_build_takes_a_folder_and_several_files(tmp_path: Path, features: np.ndarray) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    np.save(folder / "a.npy", features[:2])
    np.savez(folder / "b.npz", features=features[2:4])
    torch.save(torch.from_numpy(features[4:]), tmp_path / "c.pt")
    good("build", folder, tmp_path / "c.pt", "--out", tmp_path / "b")
    expected = MemoryBank.build(features)
    assert torch.equal(MemoryBank.load(tmp_path / "b").vectors, expected.vectors)


def test_build_with_a_faiss_index(tmp_path: Path, dump: Path, features: np.ndarray) -> None:
    pytest.importorskip("faiss")
    good("build", dump, "--out", tmp_path / "b", "--index", "Flat")
    good("score", tmp_path / "b", dump, "--out", tmp_path / "s.npz")
    expected = MemoryBank.build(features).score(features)
    with np.load(tmp_path / "s.npz") as scores:
        np.testing.assert_allclose(scores["patch"], expected.patch.numpy(), atol=1e-3)


def test_summary_names_sizes_and_times(tmp_path: Path, dump: Path) -> None:
    text = good("build", dump, "--out", tmp_path / "b")
    for word in ("300 × 16", "30 × 16", "18.8 KiB", "radius", "build", "save"):
        assert word in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "options", [[], ["--reweight", "patchcore", "--neighbors", "4"], ["--reweight", "max"], ["--reweight", "top"]]
)
def test_score_writes_what_the_library_would(tmp_path: Path, dump: Path, bank: Path, options: list[str]) -> None:
    queries = np.random.default_rng(1).normal(size=(5, 50, 16)).astype(np.float32)
    np.save(tmp_path / "q.npy", queries)
    report = facts("score", bank, tmp_path / "q.npy", "--out", tmp_path / "s.npz", *options)
    rule = options[1] if options else "m3dm"
    neighbors = int(options[3]) if len(options) > 2 else None
    expected = MemoryBank.load(bank).score(queries, reweight=rule, n_neighbors=neighbors)
    with np.load(tmp_path / "s.npz") as scores:
        assert sorted(scores) == ["image", "names", "nearest", "patch"]
        assert scores["names"].tolist() == [f"q[{i}]" for i in range(5)]
        for name in ("image", "nearest", "patch"):
            assert np.array_equal(scores[name], getattr(expected, name).numpy())
        assert (scores["patch"].dtype, scores["nearest"].dtype) == (np.float32, np.int64)
    assert report["images"] == 5
    top = report["highest"][0]
    assert top["image"] == int(expected.image.argmax())
    assert top["score"] == report["image_scores"]["max"] == pytest.approx(float(expected.image.max()))
    assert top["patch"] == int(expected.patch[top["image"]].argmax())
    origin = MemoryBank.load(bank).provenance([top["nearest"]])[0]
    assert (top["origin_image"], top["origin_patch"]) == (origin.image, origin.patch)
    assert top["origin_file"] == str(dump)


def test_score_streams_in_batches(tmp_path: Path, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that end inside one file and at the border of the next give the same scores as one batch."""
    from mmad_bank.bank import dump_scores

    queries = np.random.default_rng(1).normal(size=(7, 50, 16)).astype(np.float32)
    np.save(tmp_path / "q0.npy", queries[:5])
    np.save(tmp_path / "q1.npy", queries[5:])
    monkeypatch.setattr(dump_scores, "ROWS_AT_ONCE", 100)
    good("score", bank, tmp_path / "q0.npy", tmp_path / "q1.npy", "--out", tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as scores:
        np.testing.assert_allclose(scores["patch"], MemoryBank.load(bank).score(queries).patch.numpy(), rtol=1e-6)


def test_score_of_flat_dumps(tmp_path: Path, bank: Path, features: np.ndarray) -> None:
    np.save(tmp_path / "flat.npy", features.reshape(-1, 16))
    score = ("score", bank, tmp_path / "flat.npy", "--out", tmp_path / "s.npz", "--overwrite")
    assert facts(*score)["images"] == 1
    arguments = (*score, "--patches")
    assert facts(*arguments, 50)["images"] == 6
    assert "multiple of 77 rows" in refused(*arguments, 77)
    assert "--patches" in refused(*arguments, 0)


def test_info(bank: Path, dump: Path) -> None:
    report = facts("info", bank, "--verify")
    assert (report["vectors"], report["dim"], report["index"], report["verified"]) == (30, 16, "exact", True)
    assert report["sources"] == [{"file": str(dump), "rows": 300, "patches": 50}]
    text = good("info", bank)
    assert "30 × 16" in text
    assert "6 images of 50" in text


def test_info_system() -> None:
    assert facts("info", "--system") == json.loads(json.dumps(mmad_bank.ops.system_info()))
    text = good("info", "--system")
    assert f"in use: {mmad_bank.ops.system_info()['cpu']['in use']}" in text


def test_extend(tmp_path: Path, bank: Path, features: np.ndarray) -> None:
    np.save(tmp_path / "more.npy", features[0] + 50)
    before = bank.read_bytes()
    report = facts("extend", bank, tmp_path / "more.npy", "--out", tmp_path / "b2", "--at-most", 4)
    assert (report["added"], report["vectors"]) == (4, 34)
    assert bank.read_bytes() == before
    assert "4 vectors" in good("extend", bank, tmp_path / "more.npy", "--in-place", "--at-most", 4)
    assert torch.equal(MemoryBank.load(bank).vectors, MemoryBank.load(tmp_path / "b2").vectors)


def test_bad_build_input(tmp_path: Path, dump: Path, features: np.ndarray) -> None:
    out = tmp_path / "b"
    broken = features.copy()
    broken[1, 7, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    np.save(tmp_path / "whole.npy", np.zeros((9, 4), np.int64))
    np.save(tmp_path / "one.npy", np.zeros(4, np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, 4), np.float32))
    np.save(tmp_path / "narrow.npy", features[..., :8])
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    (tmp_path / "short.npy").write_bytes(dump.read_bytes()[:500])
    (tmp_path / "table.csv").write_text("1,2\n")
    (tmp_path / "empty").mkdir()
    cases = {
        "nan.npy": "image 1, patch 7", "whole.npy": "int64", "one.npy": r"(4,)", "none.npy": "(0, 4)",
        "object.npy": "pickled", "evil.pt": "pickled", "short.npy": "truncated", "table.csv": ".csv",
        "empty": "none", "missing.npy": "no such",
    }  # fmt: skip
    for name, words in cases.items():
        message = refused("build", tmp_path / name, "--out", out)
        assert words in message, message
        assert name in message, message
    assert "narrow.npy" in refused("build", dump, tmp_path / "narrow.npy", "--out", out)
    assert not (tmp_path / "ran").exists()
    assert not out.exists()


class _Evil:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ratio", "0"], "ratio"),
        (["--ratio", "1.5"], "1.5"),
        (["--ratio", "x"], "--ratio"),
        (["--bank-size", "0"], "size"),
        (["--bank-size", "301"], "301"),
        (["--bank-size", "3", "--ratio", "0.1"], "both"),
        (["--start", "300"], "start"),
        (["--projection-dim", "many"], "'many'"),
        (["--projection-dim", "0"], "--projection-dim"),
        (["--index", "Nonsense7"], "Nonsense7"),
        (["--bank-precision", "fp8"], "fp8"),
        (["--device", "abacus"], "abacus"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_build_options(tmp_path: Path, dump: Path, options: list[str], words: str) -> None:
    if "--index" in options:
        pytest.importorskip("faiss")
    assert words in refused("build", dump, "--out", tmp_path / "b", *options)
    assert not (tmp_path / "b").exists()


def test_bad_outputs(tmp_path: Path, dump: Path, bank: Path) -> None:
    assert "no folder" in refused("build", dump, "--out", tmp_path / "none" / "b")
    assert "found the folder" in refused("build", dump, "--out", tmp_path)
    assert "also an input" in refused("build", dump, "--out", dump)
    assert "also an input" in refused("score", bank, dump, "--out", bank)
    assert "neither" in refused("extend", bank, dump)
    assert "both" in refused("extend", bank, dump, "--in-place", "--out", tmp_path / "b2")
    assert "found none" in refused("info")
    assert "several" in refused("info", bank, "--system")
    assert "--out" in refused("build", dump)
    assert "FEATURES" in refused("build", "--out", tmp_path / "b")
    assert "fly" in refused("fly")


def test_bad_banks(tmp_path: Path, dump: Path, bank: Path, features: np.ndarray) -> None:
    whole = bank.read_bytes()
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    altered = bytearray(whole)
    altered[-5] ^= 1
    (tmp_path / "altered").write_bytes(altered)
    (tmp_path / "pickle").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    (tmp_path / "nothing").write_bytes(b"")
    for name in ("short", "altered", "pickle", "nothing", "missing"):
        assert name in refused("score", tmp_path / name, dump, "--out", tmp_path / "s.npz")
        assert name in refused("info", tmp_path / name, "--verify")
    assert refused("info", tmp_path)
    np.save(tmp_path / "narrow.npy", features[..., :8])
    assert "length 16 as in the bank, found 8" in refused(
        "score", bank, tmp_path / "narrow.npy", "--out", tmp_path / "s.npz"
    )
    np.save(tmp_path / "fewer.npy", features[:, :40])
    assert "50 patches, found 40" in refused("score", bank, dump, tmp_path / "fewer.npy", "--out", tmp_path / "s.npz")
    assert not (tmp_path / "s.npz").exists()
    assert not (tmp_path / "ran").exists()


def test_full_disk_leaves_the_old_file(bank: Path, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    scores = tmp_path / "s.npz"
    scores.write_text("old")
    monkeypatch.setattr(np, "savez", no_space)
    assert refused("score", bank, dump, "--out", scores, "--overwrite") == (
        f"error: {scores}: cannot be written (the disk is full: No space left on device)\n"
    )
    assert scores.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_unexpected_errors_are_one_line_too(bank: Path, dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(MemoryBank, "load", broken)
    result = call("info", bank)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: unexpected RuntimeError: first line second line (set MMAD_BANK_DEBUG=1")
    assert result.stderr.count("\n") == 1
    monkeypatch.setenv("MMAD_BANK_DEBUG", "1")
    assert isinstance(call("info", bank).exception, RuntimeError)


def test_interrupt_is_130(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryBank, "load", interrupted)
    result = call("info", bank)
    assert (result.exit_code, result.stderr, result.stdout) == (130, "error: interrupted\n", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_leaves_files_whole(tmp_path: Path, bank: Path, number: signal.Signals, code: int) -> None:
    """The program is stopped with the new bank half written beside the old one."""
    before = bank.read_bytes()
    script = (
        "import pathlib, sys, time, mmad_bank.cli as c\n"
        "from mmad_bank.bank import file_format\n"
        "def half(path, *tensors):\n"
        "    pathlib.Path(path).write_bytes(b'half')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "file_format.write_tensors = half\n"
        f"sys.argv = ['mmad-bank', 'build', 'features.npy', '--out', {str(bank)!r}, '--overwrite']\n"
        "c.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert bank.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_program_in_a_pipe_prints_json_only(tmp_path: Path, dump: Path) -> None:
    command = [*PROGRAM, "build", str(dump), "--out", str(tmp_path / "b"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["vectors"] == 30
    assert done.stderr == ""


def test_program_refuses_with_one_line(tmp_path: Path) -> None:
    """The same as the runner's, and what libraries warn of stays away."""
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    command = [*PROGRAM, "build", str(tmp_path / "evil.pt"), "--out", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")


def test_help_is_light_and_names_every_command() -> None:
    """PyTorch alone takes seconds to import on a busy machine: the help must not need it."""
    script = (
        "import sys\nsys.argv = ['mmad-bank', '--help']\n"
        "from mmad_bank.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("build", "extend", "score", "info", "demo"):
        assert f" {command} " in done.stdout
    assert good().rstrip() == good("--help").rstrip()
    assert good("--version") == f"mmad-bank {mmad_bank.__version__}\n"
