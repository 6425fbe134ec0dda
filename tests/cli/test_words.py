"""What the command line says and understands: errors as JSON, shares, arguments in the wrong order, misspelt names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from helpers import call
from helpers import refused as refused_in

from mmad_bank import MemoryBank
from mmad_bank.cli import app
from mmad_bank.cli._arguments import parse
from mmad_bank.cli._group import in_shell
from mmad_bank.cli._values import parse_share
from mmad_bank.errors import InputError, MissingExtraError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def refused(*arguments: object) -> str:
    return refused_in(*arguments).removeprefix("error: ").rstrip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(4, 8, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    MemoryBank.build(rows, 0.5).save(tmp_path / "bank")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    (tmp_path / "data" / "part" / "train" / "good" / "rgb").mkdir(parents=True)
    return tmp_path


# Errors as JSON.


@pytest.mark.parametrize(
    ("arguments", "raised", "kind", "code"),
    [
        (("fly", "--json"), None, "usage", 2),
        (("info", "--json"), None, "input", 2),
        (("info", "x", "--json", "--rato"), None, "usage", 2),
        (("score", "--json"), None, "usage", 2),
        (("info", "{}/data/part/train", "--json"), None, "input", 2),
        (("info", "{}/a.npy", "--json"), None, "format", 2),
        (("info", "{}/bank", "--json"), OSError(28, "No space left on device", "file"), "file", 2),
        (("info", "{}/bank", "--json"), MissingExtraError("faiss-cpu", "faiss", "this"), "missing package", 2),
        (("info", "{}/bank", "--json"), MemoryError("1 GiB"), "memory", 2),
        (("info", "{}/bank", "--json"), RuntimeError("two\nlines"), "unexpected", 1),
        (("info", "{}/bank", "--json"), KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_json_says_errors_too(
    arguments: tuple[str, ...], raised: BaseException | None, kind: str, code: int, place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def load(*arguments: Any, **options: Any) -> Any:
        assert raised is not None
        raise raised

    if raised is not None:
        monkeypatch.setattr(MemoryBank, "load", load)
    result = call(*(word.replace("{}", str(place)) for word in arguments))
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"], result.exit_code) == (kind, code, code)
    assert result.stderr == f"error: {error['message']}\n"
    assert "\n" not in error["message"]


def test_without_json_nothing_is_on_standard_output(place: Path) -> None:
    refused("info", place / "a.npy")
    assert "found both" in refused("build", place / "a.npy", "--out", place / "b", "--ratio", 1, "--bank-size", 3)
    refused("build", "--out", place / "b", "--", "--json")  # after -- it is a word like others


# Values.


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.1", 0.1), (" 100 %", 1.0), ("1", 1.0), ("0.5%", 0.005)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text, "--ratio") == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "0%", "1.5", "101%", "-1%", "%", "", "nan", "inf", "1e400", "ten"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match=r"--ratio: expected a share above 0 and up to 1, such as 0\.1 or 10%"):
        parse_share(text, "--ratio")


def test_a_device_without_data_is_refused(place: Path) -> None:
    result = call("build", place / "a.npy", "--out", place / "meta.bank", "--device", "meta")
    assert (result.exit_code, "error: --device: 'meta' cannot be used" in result.stderr) == (2, True), result.output


def test_percent_everywhere(place: Path) -> None:
    built = call("build", place / "a.npy", "--out", place / "b", "--ratio", "25%", "--json")
    assert json.loads(built.stdout)["vectors"] == 8
    np.save(place / "other.npy", np.load(place / "a.npy") + 1)
    tuned = call(
        "tune", place / "a.npy", "--test", place / "other.npy", "--ratios", "50%,1", "--bank-precisions", "float32",
        "--index", "exact", "--json",
    )  # fmt: skip
    assert tuned.exit_code == 0, tuned.output
    assert {one["ratio"] for one in json.loads(tuned.stdout)["settings"]} == {0.5, 1.0}
    assert parse("10%", float) == parse("10%", float | None) == 0.1
    assert parse("10%", str) == "10%"


# Arguments in the wrong order.


def test_swapped_arguments_are_recognised(place: Path) -> None:
    bank, dump, model, data = place / "bank", place / "a.npy", place / "model", place / "data"
    rgb, xyz = place / "000.png", place / "000.tiff"
    out = ("--out", place / "out")
    for arguments, message in (
        (("fit", data, "patchcore", *out), "expected METHOD DATASET, found DATASET METHOD: mmad-bank fit patchcore "),
        (("evaluate", data, model), f"expected MODEL DATASET, found DATASET MODEL: mmad-bank evaluate {model} {data}"),
        (("predict", data, model, *out), f"found DATASET MODEL: mmad-bank predict {model} {data}"),
        (("predict", rgb, xyz, model, *out), f"found RGB XYZ MODEL: mmad-bank predict {model} {rgb} {xyz}"),
        (("predict", rgb, model, xyz, *out), f"mmad-bank predict {model} {rgb} {xyz}"),
        (("predict", model, xyz, rgb, *out), f"expected the picture first, found the point cloud: give {rgb} {xyz}"),
        (("score", dump, bank, *out), f"expected BANK FEATURES, found FEATURES BANK: mmad-bank score {bank} {dump}"),
        (("extend", dump, bank, *out), f"mmad-bank extend {bank} {dump}"),
        (("score", bank, bank, *out), "is a memory bank; expected the feature dumps"),
        (("build", bank, *out), "is a memory bank; expected the feature dumps"),
        (("tune", bank, "--test", dump), "is a memory bank; expected the feature dumps"),
        (("tune", dump, "--test", bank), "is a memory bank; expected the feature dumps"),
    ):  # fmt: skip
        assert message in refused(*arguments), arguments
    assert not (place / "out").exists()


def test_order_that_is_right_is_not_complained_of(place: Path) -> None:
    assert call("score", place / "bank", place / "a.npy", "--out", place / "s.npz").exit_code == 0
    assert "METHOD DATASET" not in refused("fit", "patchcore", place / "no", "--out", place / "m")
    (place / "patchcore").mkdir()
    assert "METHOD DATASET" not in refused("fit", "patchcore", place / "patchcore", "--out", place / "m")


# Misspelt names.


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (("biuld",), "build"),
        (("evalute", "x", "y"), "evaluate"),
        (("build", "x", "--out", "y", "--raito", "1"), "--ratio"),
        (("fit", "pathcore", "x", "--out", "y"), "patchcore"),
        (("fit", "m3dn", "x", "--out", "y"), "m3dm"),
        (("fit", "patchcore", "x", "--out", "y", "--set", "rato=1"), "ratio"),
        (("fit", "patchcore", "x", "--out", "y", "--set", "rgb_wieghts=a"), "rgb_weights"),
    ],
)
def test_misspelt_names_are_guessed(arguments: tuple[str, ...], nearest: str) -> None:
    assert re.search(rf"[Dd]id you mean '{nearest}'|Possible options: {nearest}", refused(*arguments))


# Runs in which nothing can be used.


def test_prepare_says_why_no_sample_can_be_used(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    from mmad_bank.data.writing import write_png, write_xyz

    for name in ("000", "001"):
        for kind in ("rgb", "xyz"):
            (tmp_path / "mm" / "part" / "train" / "good" / kind).mkdir(parents=True, exist_ok=True)
        place = tmp_path / "mm" / "part" / "train" / "good"
        write_png(place / "rgb" / f"{name}.png", np.zeros((16, 16, 3), np.uint8))
        cloud = np.random.default_rng(0).uniform(100, 300, (16, 16, 3)).astype(np.float32)
        write_xyz(place / "xyz" / f"{name}.tiff", cloud)
    command = ("prepare", tmp_path / "mm", "--out", tmp_path / "out", "--workers", 1)
    result = call(*command)
    lines = result.stderr.splitlines()
    assert result.exit_code == 2
    assert [line.startswith("left out: ") for line in lines] == [True, True, False]
    assert "found none of 2 that can be used; " in lines[-1]
    assert lines[-1].startswith("error: ")
    assert "millimetres" in lines[-1]
    error = json.loads(call(*command, "--json").stdout)["error"]
    assert sorted(error["left_out"]) == ["part/train/good/000", "part/train/good/001"]
    assert error["exit_code"] == 2


def test_score_says_why_no_file_can_be_used(place: Path) -> None:
    for name in ("b.npy", "c.npy"):
        (place / name).write_bytes(b"no array")
    result = call("score", place / "bank", place / "b.npy", place / "c.npy", "--out", place / "s.npz", "--json")
    error = json.loads(result.stdout)["error"]
    assert len(error["left_out"]) == 2
    assert error["message"] == next(iter(error["left_out"].values()))


# Names of parameters are those of options.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("synth", "{}/new", "--train-images", 0), "--train-images: expected at least 1, found 0"),
        (("synth", "{}/new", "--seed", -1), "--validation-images and --seed: expected at least 0, found"),
        (("synth", "{}/new", "--image-size", 3), "--image-size: expected at least 64 pixels"),
        (("synth", "{}/new", "--categories", "stud_try"), "--categories: expected"),
        (("build", "{}/a.npy", "--out", "{}/b", "--index", "Fat"), "--index: expected 'exact' or"),
        (("build", "{}/a.npy", "--out", "{}/b", "--start", 900), "--start: expected"),
        (("build", "{}/a.npy", "--out", "{}/b", "--bank-size", 900), "--bank-size: expected"),
        (("bench", "--methods", "patchcor"), "--methods: expected some of"),
    ],
)
def test_errors_name_options(arguments: tuple[object, ...], message: str, place: Path) -> None:
    assert refused(*(str(word).format(place) for word in arguments)).startswith(message)


def test_hints_are_the_shells() -> None:
    options = {"layout": "--layout"}
    assert in_shell("maps: a layout by layout= (--layout): both fit", options) == "maps: a layout by --layout: both fit"
    line = "a.npy: n: expected 3; force=True (--force) scores it"
    assert in_shell(line, {"few_shot": "--few-shot"}) == "a.npy: n: expected 3; --force scores it"
    assert in_shell("n and andy: expected 3", {"n": "--n", "andy": "--and"}) == "--n and --and: expected 3"
    assert in_shell("features: expected an array", options) == "features: expected an array"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "{}/data", "--out", "{}/o", "--recipe", "m3d"), "--recipe: expected one of auto, m3dm, "),
        (("synth", "{}/o", "--categories", "stud_try"), "--categories: expected one of "),
        (("bench", "--methods", "patchcor"), "--methods: expected some of "),
    ],
)
def test_misspelt_names_are_asked_about(arguments: tuple[str, ...], message: str, place: Path) -> None:
    near = {"m3d": "m3dm", "stud_try": "stud_tray", "patchcor": "patchcore"}[arguments[-1]]
    line = refused(*(word.format(place) for word in arguments))
    assert line.startswith(message)
    assert line.endswith(f"found {arguments[-1]!r} (did you mean {near!r}?)")


def test_info_says_how_many_it_found(place: Path) -> None:
    assert refused("info").endswith("expected one of them, found none")
    assert refused("info", "--weights", "--system").endswith("expected one of them, found several")
    assert refused("info", place / "bank", "--system").endswith("expected one of them, found several")
