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

for package in ("scipy", "tifffile", "timm", "matplotlib", "PIL"):
    pytest.importorskip(package)

from helpers import call, small_settings

from mmad_bank.cli._output import is_unfinished, unfinished
from mmad_bank.synthetic import write_synthetic

SIZE = 32
SMALL = small_settings(SIZE, 4, 0.5)
BENCH = ("--quick", "--rounds", "1", "--batches", "1", "--times-only")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the commands below read: a data set, a model, dumps and a bank."""
    folder = tmp_path_factory.mktemp("overwrite")
    rows = np.random.default_rng(0).normal(size=(6, 8, 4)).astype(np.float32)
    np.save(folder / "a.npy", rows[:4])
    np.save(folder / "b.npy", rows[4:])
    (folder / "scores.csv").write_text("score\n1\n3\n2\n")
    write_synthetic(folder / "raw", size=64, n_train=2, n_validation=0, n_test=2, categories=["stud_tray"])
    for command in (
        ("prepare", folder / "raw", "--out", folder / "data", "--recipe", "keep", "--image-size", SIZE, "--workers", 1),
        ("fit", "patchcore", folder / "data", "--out", folder / "model", *SMALL),
        ("build", folder / "a.npy", "--out", folder / "bank"),
    ):
        result = call(*command)
        assert result.exit_code == 0, result.output
    return folder


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "build": (("build", "{}/a.npy", "--out", "{new}/bank"), "bank"),
    "extend": (("extend", "{}/bank", "{}/b.npy", "--out", "{new}/bank"), "bank"),
    "calibrate": (("calibrate", "{}/bank", "{}/b.npy", "--out", "{new}/bank"), "bank"),
    "score": (("score", "{}/bank", "{}/b.npy", "--out", "{new}/s.npz"), "s.npz"),
    "score --csv": (("score", "{}/bank", "{}/b.npy", "--csv", "{new}/s.csv"), "s.csv"),
    "synth": (("synth", "{new}/raw", "--image-size", "64", "--train-images", "1", "--validation-images", "0",
               "--test-images", "1",
               "--categories", "stud_tray", "--workers", "1"), "raw/synthetic.json"),
    "extract": (("extract", "{}/data", "--out", "{new}/dumps", "--rgb-weights", "random", "--xyz", "none",
                 "--image-size", str(SIZE), "--grid", "4"), "dumps/rgb.npy"),
    "fit": (("fit", "patchcore", "{}/data", "--out", "{new}/model", *SMALL), "model/model.json"),
    "train-uff": (("train-uff", "{}/data", "--out", "{new}/uff.safetensors", *SMALL, "--set", "xyz=fpfh", "--set",
                   "uff_steps=1", "--set", "uff_batch=1"), "uff.safetensors"),
    "evaluate --report": (("evaluate", "{}/model", "{}/data", "--report", "{new}/r"), "r/index.html"),
    "evaluate --out": (("evaluate", "{}/model", "{}/data", "--out", "{new}/e.json"), "e.json"),
    "evaluate --markdown": (("evaluate", "{}/model", "{}/data", "--markdown", "{new}/e.md"), "e.md"),
    "predict": (("predict", "{}/model", "{}/data", "--out", "{new}/p"), "p/stud_tray/test/good/000/score.json"),
    "predict --maps": (("predict", "{}/model", "{}/data", "--out", "{new}/p", "--maps", "{new}/m"),
                       "m/stud_tray/test/good/000.tiff"),
    "tune --out": (("tune", "{}/a.npy", "--test", "{}/b.npy", "--ratios", "1", "--bank-precisions", "float32",
                    "--index", "exact", "--out", "{new}/t.json"), "t.json"),
    "tune --plot": (("tune", "{}/a.npy", "--test", "{}/b.npy", "--ratios", "1", "--bank-precisions", "float32",
                     "--index", "exact", "--plot", "{new}/t.png"), "t.png"),
    "monitor": (("monitor", "{}/scores.csv", "--normal", "{}/scores.csv", "--plot", "{new}/d.png"), "d.png"),
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
        ("calibrate", place / "bank", place / "b.npy", "--out", place / "b.npy"),
    ):
        refused = call(*command, "--overwrite")
        assert refused.exit_code == 2
        assert "is also an input" in refused.stderr


def test_files_in_folders_that_are_read_are_never_overwritten(place: Path, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    for name in ("a.npy", "b.npy"):
        (dumps / name).write_bytes((place / name).read_bytes())
    (tmp_path / "link").symlink_to(dumps)
    picture, cloud = (next((place / "data/stud_tray/test/good" / kind).iterdir()) for kind in ("rgb", "xyz"))
    (dumps / "image.png").write_bytes(picture.read_bytes())
    (dumps / "image.tiff").write_bytes(cloud.read_bytes())
    model, data = place / "model", place / "data"
    before = {path: path.read_bytes() for folder in (dumps, model, data) for path in folder.rglob("*.*")}
    for command in (
        ("build", dumps, "--out", dumps / "a.npy"),
        ("build", dumps, "--out", tmp_path / "link" / "a.npy"),
        ("build", tmp_path / "link", "--out", dumps / "a.npy"),
        ("extend", place / "bank", dumps, "--out", dumps / "a.npy"),
        ("score", place / "bank", dumps, "--out", dumps / "b.npy"),
        ("tune", dumps / "a.npy", "--test", dumps, "--out", dumps / "b.npy"),
        ("evaluate", model, data, "--out", model / "model.json"),
        ("evaluate", model, data, "--markdown", picture),
        ("predict", model, dumps / "image.png", dumps / "image.tiff", "--out", dumps),
        ("predict", model, dumps / "image.png", dumps / "image.tiff", "--out", tmp_path / "p", "--maps", dumps),
    ):
        refused = call(*command, "--overwrite")
        assert (refused.exit_code, "is also an input" in refused.stderr) == (2, True), (command, refused.output)
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "p").exists()
    for _ in range(2):  # what is of no kind that is read may lie there
        assert call("build", dumps / "a.npy", "--out", dumps / "normal.bank", "--overwrite").exit_code == 0


def test_every_file_of_a_prediction_is_asked_for(place: Path, tmp_path: Path) -> None:
    sample = [next((place / "data/stud_tray/test/good" / kind).iterdir()) for kind in ("rgb", "xyz")]
    for name in ("image.png", "map.npy", "overlay.png"):
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text("somebody's")
        refused = call("predict", place / "model", *sample, "--out", out)
        assert (refused.exit_code, "exists; name another" in refused.stderr) == (2, True), refused.output
        assert (out / name).read_text() == "somebody's"


def test_pictures_of_one_name_have_folders_of_their_own(place: Path, tmp_path: Path) -> None:
    rgb, xyz = (next((place / "data/stud_tray/test/good" / kind).iterdir()) for kind in ("rgb", "xyz"))
    pairs = []
    for number, name in enumerate(("a-2.png", "a.png", "a.png")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(rgb.read_bytes())
        pairs += [tmp_path / str(number) / name, xyz]
    result = call("predict", place / "model", *pairs, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    folders = [one["folder"] for one in json.loads(result.stdout)["samples"]]
    assert len(set(folders)) == 3


def test_two_outputs_are_two_files(place: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for command in (
        ("score", place / "bank", place / "b.npy", "--out", both, "--csv", both),
        ("evaluate", place / "model", place / "data", "--out", both, "--markdown", both),
        ("tune", place / "a.npy", "--test", place / "b.npy", "--out", f"{both}.png", "--plot", f"{both}.png"),
    ):
        refused = call(*command)
        assert (refused.exit_code, "expected two files" in refused.stderr) == (2, True), refused.output
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder_is_not_replaced(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What works in it would be left in a folder that is gone."""
    (tmp_path / "below").mkdir()
    for current, out in ((tmp_path, "."), (tmp_path, ""), (tmp_path / "below", "..")):
        monkeypatch.chdir(current)
        for command in (
            ("synth", out, "--image-size", 64),
            ("fit", "patchcore", place / "data", *SMALL, "--out", out),
            ("evaluate", place / "model", place / "data", "--report", out),
        ):
            refused = call(*command)
            assert (refused.exit_code, refused.stderr.count("error: ")) == (2, 1), refused.output
            assert "unexpected" not in refused.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["below"]


def test_models_of_categories_do_not_come_into_a_models_folder(place: Path, tmp_path: Path) -> None:
    """Whoever evaluates that folder would get the model that was there first, for all of them."""
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        (tmp_path / "two" / name).symlink_to(place / "raw" / "stud_tray")
    before = (place / "model" / "model.json").read_bytes()
    refused = call("fit", "patchcore", tmp_path / "two", "--out", place / "model", *SMALL, "--overwrite")
    assert (refused.exit_code, "found a model in" in refused.stderr) == (2, True), refused.output
    assert (place / "model" / "model.json").read_bytes() == before
    assert not (place / "model" / "a").exists()


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


@pytest.mark.slow
def test_a_stopped_prediction_goes_on(place: Path, tmp_path: Path) -> None:
    command = ["predict", str(place / "model"), str(place / "data"), "--out", str(tmp_path / "p")]
    script = (
        "import os, signal, sys, mmad_bank.cli as c\n"
        "from mmad_bank.cli import predict\n"
        "predict.draw_overlay = lambda *x: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.argv = ['mmad-bank', *sys.argv[1:]]\nc.main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "p/stud_tray/test/good/000/score.json").exists()
    maps = tmp_path / "maps/stud_tray/test/good/000.tiff"
    maps.parent.mkdir(parents=True)
    maps.write_bytes(b"of another run")
    assert call(*command, "--maps", tmp_path / "maps").exit_code == 2, "the stopped run had no maps"
    assert maps.read_bytes() == b"of another run"
    other = call("predict", place / "model", place / "data", "--split", "train", "--out", tmp_path / "p")
    assert other.exit_code == 0, "other samples, other places"
    (tmp_path / "p" / ".unfinished.json").write_text("{}")
    assert call(*command).exit_code == 2, "another command was stopped here"
    result = call(*command, "--overwrite")
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "p").glob(".*"))


def test_an_evaluation_stopped_between_its_outputs_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmad_bank.cli import evaluation

    def stop(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    options = ["--report", tmp_path / "report", "--out", tmp_path / "out.json"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_text", stop)
        assert call("evaluate", place / "model", place / "data", *options).exit_code == 130
    assert (tmp_path / "report" / "index.html").exists()
    other = call("evaluate", place / "model", place / "data", "--report", tmp_path / "report")
    assert other.exit_code == 2, "another command was stopped here"
    result = call("evaluate", place / "model", place / "data", *options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "report"]
    assert call("evaluate", place / "model", place / "data", *options).exit_code == 2, "done, and so not unfinished"


@pytest.mark.parametrize("outputs", [("--out", "s.npz", "--csv", "s.csv"), ("--maps", "new/maps")])
def test_scoring_stopped_between_its_outputs_goes_on(
    outputs: tuple[str, ...], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmad_bank.cli import _scoring
    from mmad_bank.data import writing

    write, written = writing.write_map, []

    def stop_at_the_second(path: Path, values: np.ndarray) -> None:
        stop() if written else written.append(path)
        write(path, values)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("in.npy", "other.npy"):
        np.save(name, np.load(place / "b.npy").reshape(2, 2, 4, 4))
    command, options = ["score", place / "bank"], ["--axes", "bhwc", *outputs]
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_map", stop_at_the_second)
        patch.setattr(_scoring, "save_table", stop)
        assert call(*command, "in.npy", *options).exit_code == 130
    assert all(path.exists() for path in written or [tmp_path / "s.npz"])
    assert call(*command, "other.npy", *options, "--out", "s.npz").exit_code == (2 if "--out" in outputs else 0)
    done = call(*command, "in.npy", *options)
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.rglob(".*"))
    assert call(*command, "in.npy", *options).exit_code == 2, "done, and so not unfinished"


def test_a_folder_does_not_take_the_place_of_a_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", np.load(place / "b.npy").reshape(2, 2, 4, 4))
    before = sorted(tmp_path.iterdir())
    score = ("score", place / "bank", "in.npy", "--axes", "bhwc")
    evaluate = ("evaluate", place / "model", place / "data")
    for command, option, path, folder in (
        (score, "--out", "x", "x"), (score, "--csv", "x", "./x/y"), (score, "--out", "in[0].tiff", "."),
        (evaluate, "--out", "x", "x"), (evaluate, "--markdown", "x", "x/y"),
    ):  # fmt: skip
        whole = "--maps" if command is score else "--report"
        result = call(*command, option, path, whole, folder)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"error: {option} and {whole}: expected two places, found {path!r} for both\n"
    assert sorted(tmp_path.iterdir()) == before


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
