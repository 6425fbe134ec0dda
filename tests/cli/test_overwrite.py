"""What exists is replaced on request only: one option and one line for every command that writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

for package in ("scipy", "tifffile", "timm", "matplotlib", "PIL"):
    pytest.importorskip(package)

from mmad_bank.cli import app
from mmad_bank.cli._output import is_unfinished, unfinished
from mmad_bank.data.synthetic import write_synthetic

SIZE = 32
SMALL = [
    word
    for setting in ("rgb=efficientnet_lite0", "rgb_weights=random", f"image_size={SIZE}", "grid=4,4", "ratio=0.5")
    for word in ("--set", setting)
]
BENCH = ("--quick", "--rounds", "1", "--batch", "1", "--no-memory")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the commands below read: a data set, a model, dumps and a bank."""
    folder = tmp_path_factory.mktemp("overwrite")
    rows = np.random.default_rng(0).normal(size=(6, 8, 4)).astype(np.float32)
    np.save(folder / "a.npy", rows[:4])
    np.save(folder / "b.npy", rows[4:])
    write_synthetic(folder / "raw", size=64, n_train=2, n_validation=0, n_test=2, categories=["stud_tray"])
    for command in (
        ("prepare", folder / "raw", "--out", folder / "data", "--recipe", "keep", "--size", SIZE, "--workers", 1),
        ("fit", "patchcore", folder / "data", "--out", folder / "model", *SMALL),
        ("build", folder / "a.npy", "--out", folder / "bank"),
    ):
        result = call(*command)
        assert result.exit_code == 0, result.output
    return folder


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "build": (("build", "{}/a.npy", "--out", "{new}/bank"), "bank"),
    "extend": (("extend", "{}/bank", "{}/b.npy", "--out", "{new}/bank"), "bank"),
    "score": (("score", "{}/bank", "{}/b.npy", "--out", "{new}/s.npz"), "s.npz"),
    "score --csv": (("score", "{}/bank", "{}/b.npy", "--csv", "{new}/s.csv"), "s.csv"),
    "synth": (("synth", "{new}/raw", "--size", "64", "--train", "1", "--validation", "0", "--test", "1",
               "--categories", "stud_tray", "--workers", "1"), "raw/synthetic.json"),
    "extract": (("extract", "{}/data", "--out", "{new}/dumps", "--rgb-weights", "random", "--xyz", "none",
                 "--image-size", str(SIZE), "--grid", "4"), "dumps/rgb.npy"),
    "fit": (("fit", "patchcore", "{}/data", "--out", "{new}/model", *SMALL), "model/model.json"),
    "evaluate --report": (("evaluate", "{}/model", "{}/data", "--report", "{new}/r"), "r/index.html"),
    "evaluate --out": (("evaluate", "{}/model", "{}/data", "--out", "{new}/e.json"), "e.json"),
    "evaluate --markdown": (("evaluate", "{}/model", "{}/data", "--markdown", "{new}/e.md"), "e.md"),
    "predict": (("predict", "{}/model", "{}/data", "--out", "{new}/p"), "p/stud_tray/test/good/000/score.json"),
    "predict --maps": (("predict", "{}/model", "{}/data", "--out", "{new}/p", "--maps", "{new}/m"),
                       "m/stud_tray/test/good/000.tiff"),
    "tune --out": (("tune", "{}/a.npy", "--test", "{}/b.npy", "--ratios", "1", "--precisions", "float32",
                    "--index", "exact", "--out", "{new}/t.json"), "t.json"),
    "tune --plot": (("tune", "{}/a.npy", "--test", "{}/b.npy", "--ratios", "1", "--precisions", "float32",
                     "--index", "exact", "--plot", "{new}/t.png"), "t.png"),
    "bench": (("bench", "--methods", "PatchCore", *BENCH, "--out", "{new}/b.json"), "b.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_what_exists_is_replaced_on_request_only(name: str, place: Path, tmp_path: Path) -> None:
    words, output = COMMANDS[name]
    if name == "bench":
        pytest.importorskip("sklearn")
    command = [word.replace("{new}", str(tmp_path)).replace("{}", str(place)) for word in words]
    first = call(*command)
    assert first.exit_code == 0, first.output
    made = tmp_path / output
    before, names = made.read_bytes(), sorted(tmp_path.rglob("*"))
    again = call(*command)
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr.endswith("exists; name another, or replace it with --overwrite\n")
    assert again.stderr.count("error: ") == 1
    assert str(tmp_path) in again.stderr
    assert made.read_bytes() == before
    replaced = call(*command, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert made.exists()
    assert sorted(tmp_path.rglob("*")) == names, "nothing is left beside it"
    assert b"partial" not in b"".join(os.fsencode(path) for path in names)


def test_inputs_are_never_overwritten(place: Path, tmp_path: Path) -> None:
    for command in (
        ("build", place / "a.npy", "--out", place / "a.npy"),
        ("score", place / "bank", place / "b.npy", "--out", place / "bank"),
        ("extend", place / "bank", place / "b.npy", "--out", place / "bank"),
    ):
        refused = call(*command, "--overwrite")
        assert refused.exit_code == 2
        assert "is also an input" in refused.stderr


def test_in_place_needs_no_other_word(place: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    bank.write_bytes((place / "bank").read_bytes())
    assert call("extend", bank, place / "b.npy", "--in-place").exit_code == 0
    assert bank.read_bytes() != (place / "bank").read_bytes()


def test_an_extraction_is_replaced_whole(place: Path, tmp_path: Path) -> None:
    """A dump of the extraction before does not stay beside the list of another one; foreign files do."""
    options = ("--out", tmp_path, "--image-size", SIZE, "--grid", 4, "--overwrite")
    (tmp_path / "mine.npy").write_bytes(b"mine")
    np.save(tmp_path / "xyz.npy", np.zeros(3))
    (tmp_path / "extraction.json").write_text(json.dumps({"dumps": {"xyz": {}}}))
    done = call("extract", place / "data", "--rgb-weights", "random", "--xyz", "none", *options)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["extraction.json", "mine.npy", "rgb.npy"]


def test_a_stopped_prediction_goes_on(place: Path, tmp_path: Path) -> None:
    command = ["predict", str(place / "model"), str(place / "data"), "--out", str(tmp_path / "p")]
    script = (
        "import os, signal, sys, mmad_bank.cli as c\n"
        "from mmad_bank.cli import evaluation\n"
        "evaluation._draw_overlay = lambda *x: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.argv = ['mmad-bank', *sys.argv[1:]]\nc.main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "p/stud_tray/test/good/000/score.json").exists()
    other = call("predict", place / "model", place / "data", "--split", "train", "--out", tmp_path / "p")
    assert other.exit_code == 0, "other samples, other places"
    (tmp_path / "p" / ".unfinished.json").write_text("{}")
    assert call(*command).exit_code == 2, "another command was stopped here"
    result = call(*command, "--overwrite")
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "p").glob(".*"))


def test_the_note_of_an_unfinished_command(tmp_path: Path) -> None:
    job, folder = {"do": ["this", None]}, tmp_path / "new"

    def fill(words: str) -> None:
        with unfinished(folder, job):
            if words:
                (folder / "half").write_text(words)
            if words != "whole":
                raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fill("")
    assert not folder.exists(), "nothing was in it"
    with pytest.raises(ValueError, match="stopped"):
        fill("half")
    assert is_unfinished(folder, job)
    assert not is_unfinished(folder, {"do": ["that"]})
    fill("whole")
    assert not is_unfinished(folder, job)
    assert [path.name for path in folder.iterdir()] == ["half"]
