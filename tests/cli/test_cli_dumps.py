"""Names, shapes and extractors through the commands: what they read, and what they give back."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import call, good, refused

from mmad_bank.bank import MemoryBank
from mmad_bank.errors import InputError
from mmad_bank.scoring import anomaly_map

GRID = (4, 5)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def normal() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 20, 8)).astype(np.float32)


@pytest.fixture
def train(tmp_path: Path, normal: np.ndarray) -> Path:
    """Return a folder as ``extract`` leaves it."""
    folder = tmp_path / "train"
    folder.mkdir()
    np.save(folder / "rgb.npy", normal)
    write_extraction(folder, [f"part/train/good/{i:03}" for i in range(6)])
    return folder


def write_extraction(folder: Path, ids: list[str], extractor: str = "net 1") -> None:
    dumps = {"rgb": {"file": "rgb.npy", "dim": 8, "extractor": extractor, "grid": GRID}}
    (folder / "extraction.json").write_text(json.dumps({"ids": ids, "split": "train", "dumps": dumps}))


@pytest.fixture
def bank(tmp_path: Path, train: Path) -> Path:
    report = json.loads(good("build", train / "rgb.npy", "--out", tmp_path / "bank", "--bank-size", "30", "--json"))
    assert report["extractor"] == "net 1"
    return tmp_path / "bank"


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """Return a folder of files, an image each, the second of which has a defect."""
    folder = tmp_path / "query"
    values = np.random.default_rng(1).normal(size=(3, 20, 8)).astype(np.float32)
    values[1, 13] += 9
    for name, image in zip(("good/a", "hole/b", "hole/c, d"), values, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", image)
    (folder / "extraction.json").write_text(json.dumps({"grid": GRID}))
    return folder


def test_names_come_back_in_arrays_tables_and_lists(tmp_path: Path, bank: Path, queries: Path, train: Path) -> None:
    scores, table = tmp_path / "s.npz", tmp_path / "s.csv"
    report = json.loads(good("score", bank, queries, "--out", scores, "--csv", table, "--top", 2, "--json"))
    names = ["good/a", "hole/b", "hole/c, d"]
    with np.load(scores) as arrays:  # plain text: nothing is pickled
        assert arrays["names"].tolist() == names
        patch, image, nearest = arrays["patch"], arrays["image"], arrays["nearest"]
    rows = read_table(table)
    assert [row["name"] for row in rows] == names
    assert [row["file"] for row in rows] == [str(queries / f"{name}.npy") for name in names]
    loaded = MemoryBank.load(bank)
    for number, row in enumerate(rows):
        worst = int(patch[number].argmax())
        assert np.float32(row["score"]) == image[number]
        assert np.float32(row["worst_score"]) == patch[number].max()
        assert (int(row["worst_patch"]), int(row["worst_row"]), int(row["worst_column"])) == (worst, *divmod(worst, 5))
        assert int(row["nearest"]) == nearest[number, worst]
        (origin,) = loaded.provenance([int(row["nearest"])])
        assert row["source"] == origin.name == f"part/train/good/{origin.image:03}"
        assert row["source_file"] == str(train / "rgb.npy")
        assert int(row["source_patch"]) == origin.patch
        assert (int(row["source_row"]), int(row["source_column"])) == origin.place == divmod(origin.patch or 0, 5)
    assert [entry["name"] for entry in report["highest"]] == [names[i] for i in image.argsort()[::-1][:2]]
    assert report["highest"][0]["place"] == [2, 3]
    text = good("score", bank, queries, "--csv", tmp_path / "again.csv")
    first = text.splitlines()[1]
    assert first.split()[:2] == ["highest", "hole/b"]
    assert "patch at row 2, column 3, nearest to part/train/good/00" in first
    assert (tmp_path / "again.csv").read_bytes() == table.read_bytes()


def test_a_table_without_names_and_grids(tmp_path: Path, normal: np.ndarray) -> None:
    np.save(tmp_path / "flat.npy", normal.reshape(-1, 8))
    good("build", tmp_path / "flat.npy", "--out", tmp_path / "bank", "--bank-size", "9")
    np.save(tmp_path / "q.npy", normal[:2].reshape(-1, 8) + 1)
    good("score", tmp_path / "bank", tmp_path / "q.npy", "--patches", "20", "--csv", tmp_path / "s.csv")
    rows = read_table(tmp_path / "s.csv")
    assert [row["name"] for row in rows] == ["q[0]", "q[1]"]
    assert {row["worst_row"] for row in rows} == {row["source_column"] for row in rows} == {""}
    assert {row["source"] for row in rows} == {"flat"}
    assert "--top" in refused("score", tmp_path / "bank", tmp_path / "q.npy", "--csv", tmp_path / "t.csv", "--top", 0)
    assert "no folder" in refused("score", tmp_path / "bank", tmp_path / "q.npy", "--csv", tmp_path / "none" / "t.csv")


def test_features_of_another_extractor_are_refused(tmp_path: Path, bank: Path, train: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "rgb.npy", np.load(train / "rgb.npy") + 1)
    write_extraction(other, [str(i) for i in range(6)], "net 2")
    words = f"{other / 'rgb.npy'}: expected features of the extractor 'net 1' as in {bank}, found 'net 2'"
    assert words in refused("score", bank, other / "rgb.npy", "--out", tmp_path / "s.npz")
    assert words in refused("extend", bank, other / "rgb.npy", "--out", tmp_path / "b2")
    assert "'net 1'" in refused("build", train / "rgb.npy", other / "rgb.npy", "--out", tmp_path / "b2")
    tuned = refused("tune", train / "rgb.npy", "--test", other / "rgb.npy")
    assert "'net 1'" in tuned
    assert "'net 2'" in tuned
    assert not (tmp_path / "b2").exists()


def test_vectors_of_another_length_are_named_by_their_file(tmp_path: Path, bank: Path, train: Path) -> None:
    wide = tmp_path / "d16.npy"
    np.save(wide, np.ones((2, 20, 16), np.float32))
    words = f"error: {wide}: expected vectors of length 8 as in "
    assert refused("score", bank, wide) == f"{words}the bank, found 16\n"
    assert refused("extend", bank, wide, "--out", tmp_path / "b2") == f"{words}the bank, found 16\n"
    assert refused("tune", train / "rgb.npy", "--test", wide) == f"{words}{train / 'rgb.npy'}, found 16\n"
    with pytest.raises(InputError, match="features: expected vectors of length 8 as in the bank, found 16"):
        MemoryBank.load(bank).extend(torch.ones(3, 16))


@pytest.mark.parametrize("command", [("score",), ("extend", "--in-place")])
def test_a_folder_is_no_bank(tmp_path: Path, train: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    folder = tmp_path / "models"
    (folder / "part").mkdir(parents=True)
    assert refused(name, folder, train, *options) == (
        f"error: {folder}: expected a bank file as build writes it, found a folder\n"
    )
    (folder / "part" / "model.json").write_text("{}")
    ending = "; expected a bank file as build writes it. A model scores images by mmad-bank predict, and"
    assert f"{folder}: is a folder of saved models{ending}" in refused(name, folder, train, *options)
    assert f"{folder / 'part'}: is a saved model{ending}" in refused(name, folder / "part", train, *options)


def test_options_are_called_by_their_names(bank: Path, train: Path, tmp_path: Path) -> None:
    for options, words in (
        (("--neighbors", 0), "--neighbors: expected 2 to "),
        (("--neighbors", 0, "--reweight", "patchcore"), "--neighbors: expected 1 to "),
        (("--device", "gpu"), "--device: expected cpu, cuda or cuda:N, found 'gpu'\n"),
        (("--device", ""), "--device: expected cpu, cuda or cuda:N, found ''\n"),
    ):
        assert refused("score", bank, train, *options).startswith(f"error: {words}")


def test_defective_images_for_a_bank_are_told(tmp_path: Path, bank: Path, queries: Path, train: Path) -> None:
    ending = " by their names (hole/b, hole/c, d); a bank is meant for normal ones alone\n"
    built = call("build", queries, "--out", tmp_path / "b2")
    assert (built.exit_code, built.stderr) == (0, f"note: 2 of 3 images are defective{ending}")
    extended = call("extend", bank, queries / "hole", "--out", tmp_path / "b3")
    assert (extended.exit_code, extended.stderr) == (0, ""), "files of one folder, whose names have none"
    np.savez(tmp_path / "bad.npz", features=np.full((1, 20, 8), 9, np.float32), names=["hole/x"])
    one = call("extend", bank, tmp_path / "bad.npz", "--out", tmp_path / "b3", "--overwrite", "--json")
    assert one.exit_code == 0
    assert json.loads(one.stdout)["added"] > 0
    assert one.stderr.startswith("note: 1 of 1 image is defective by its name (hole/x); ")
    for names in (["ok/x"], ["x"]):
        np.savez(tmp_path / "fine.npz", features=np.ones((1, 20, 8), np.float32), names=names)
        assert call("extend", bank, tmp_path / "fine.npz", "--out", tmp_path / "b3", "--overwrite").stderr == ""
    assert call("build", train, "--out", tmp_path / "b4").stderr == ""


def test_info_shows_where_a_bank_came_from(bank: Path, train: Path) -> None:
    text = good("info", bank)
    assert "net 1" in text
    assert "6 images of 20, grid 4 × 5, names part/train/good/000, " in text
    report = json.loads(good("info", bank, "--json"))
    assert report["extractor"] == "net 1"
    assert report["sources"] == [{"file": str(train / "rgb.npy"), "rows": 120, "patches": 20}]
    assert report["images"] == [{"grid": [4, 5], "names": [f"part/train/good/{i:03}" for i in range(6)]}]


@pytest.fixture
def layers(tmp_path: Path) -> dict[str, Any]:
    """Return maps of two layers of training and of test images, by split, and write them to files."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for split, n_images in (("train", 5), ("test", 4)):
        a = torch.randn(n_images, 3, 6, 4, generator=generator)
        b = torch.randn(n_images, 5, 3, 2, generator=generator)
        names = [f"{split}{i}" for i in range(n_images)]
        torch.save({"a": a, "b": b, "names": names}, tmp_path / f"{split}.pt")
        larger = torch.nn.functional.interpolate(b, size=(6, 4), mode="bilinear", align_corners=False)
        found[split] = torch.cat([a, larger], 1).permute(0, 2, 3, 1).reshape(n_images, 24, 8).numpy()
    return found


def test_every_command_reads_layers_in_the_same_way(tmp_path: Path, layers: dict[str, np.ndarray]) -> None:
    options = ["--key", "a,b", "--axes", "bchw"]
    train, test, bank = tmp_path / "train.pt", tmp_path / "test.pt", tmp_path / "bank"
    assert "--axes" in refused("build", train, "--out", bank, "--key", "a,b")
    listed = "found a float32 (5, 3, 6, 4), b float32 (5, 5, 3, 2)"
    assert listed in refused("build", train, "--out", bank, "--key", "c")
    assert "--key: expected names of arrays" in refused("build", train, "--out", bank, "--key", ",")
    good("build", train, "--out", bank, "--bank-size", "20", *options)
    built = MemoryBank.build(layers["train"], size=20)
    assert torch.equal(MemoryBank.load(bank).vectors, built.vectors)
    good("score", bank, test, "--out", tmp_path / "s.npz", "--key", "a,b")  # the bank's length tells the layout
    with np.load(tmp_path / "s.npz") as scores:
        assert scores["names"].tolist() == [f"test{i}" for i in range(4)]
        assert np.array_equal(scores["patch"], built.score(layers["test"]).patch.numpy())
    assert json.loads(good("extend", bank, test, "--in-place", "--at-most", "3", *options, "--json"))["added"] == 3
    assert MemoryBank.load(bank).provenance([22])[0].name.startswith("test")
    few = ["--ratios", "10%", "--bank-precisions", "half", "--index", "exact", "--json"]
    tuned = json.loads(good("tune", train, "--test", test, *options, *few))
    assert (tuned["rows"], tuned["dim"], tuned["images"], tuned["patches"]) == (120, 8, 4, 24)


def test_images_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", **{f"t{i}": rng.normal(size=(10, 4)) for i in range(5)})
    np.savez(tmp_path / "test.npz", **{f"q{i}": rng.normal(size=(10, 4)) for i in range(3)})
    assert "--by-image" in refused("build", tmp_path / "train.npz", "--out", tmp_path / "b")
    good("build", tmp_path / "train.npz", "--out", tmp_path / "b", "--by-image")
    good("score", tmp_path / "b", tmp_path / "test.npz", "--csv", tmp_path / "s.csv", "--by-image")
    rows = read_table(tmp_path / "s.csv")
    assert [row["name"] for row in rows] == ["q0", "q1", "q2"]
    assert {row["source"] for row in rows} <= {f"t{i}" for i in range(5)}


def test_a_file_that_cannot_be_used_is_named_and_the_rest_is_scored(tmp_path: Path, bank: Path, queries: Path) -> None:
    (queries / "extraction.json").write_text(json.dumps({"grid": GRID, "ids": [f"picture {i}" for i in range(6)]}))
    nan = np.zeros((20, 8), np.float32)
    nan[7, 3] = np.nan
    np.save(queries / "good" / "nan.npy", nan)
    np.save(queries / "good" / "narrow.npy", nan[:, :5])
    (queries / "hole" / "aa.npy").write_bytes((queries / "hole" / "b.npy").read_bytes()[:200])
    result = call("score", bank, queries, "--out", tmp_path / "s.npz", "--csv", tmp_path / "s.csv", "--json")
    assert result.exit_code == 3, result.output
    report = json.loads(result.stdout)
    assert report["images"] == 3
    assert list(report["left_out"]) == [str(queries / f"{name}.npy") for name in ("good/narrow", "hole/aa", "good/nan")]
    assert len(result.stderr.splitlines()) == 3
    assert f"left out: {queries}/good/nan.npy: image 'picture 1', patch 7 (row 1, column 2) holds NaN" in result.stderr
    names = ["picture 0", "picture 4", "picture 5"]  # each keeps its own
    assert [row["name"] for row in read_table(tmp_path / "s.csv")] == names
    with np.load(tmp_path / "s.npz") as scores:
        assert scores["names"].tolist() == names
        whole = np.stack([np.load(queries / f"{name}.npy") for name in ("good/a", "hole/b")])
        assert np.array_equal(scores["patch"][:2], MemoryBank.load(bank).score(whole).patch.numpy())
    message = refused("score", bank, queries / "good" / "nan.npy", "--csv", tmp_path / "t.csv")
    assert "good/nan.npy: image 0, patch 7 holds NaN" in message
    assert not (tmp_path / "t.csv").exists()
    assert "truncated" in refused("score", bank, queries / "hole" / "aa.npy", "--csv", tmp_path / "t.csv")
    # Files of (N, D) are no images where a bank is built.
    assert "good/nan.npy: row 7 holds NaN" in refused("build", queries / "good" / "nan.npy", "--out", tmp_path / "b3")


def test_scores_without_a_file_to_write_are_listed(tmp_path: Path, bank: Path, queries: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    lines = good("score", bank, queries, "--top", 1).splitlines()
    assert lines[0] == f"scored against {bank}"
    assert lines[1].split(",")[0].split()[:2] == ["highest", "hole/b"]
    assert lines[2].startswith("  images")  # one is asked for
    (first,) = json.loads(good("score", bank, queries, "--top", 1, "--json"))["highest"]
    assert first["score"] < first["distance"]
    told = f"  {first['score']:.4g} (distance {first['distance']:.4g}, re-weighted by m3dm), patch at row 2, column 3,"
    assert told in lines[1]
    plain = good("score", bank, queries, "--top", 1, "--reweight", "max").splitlines()[1]
    assert f"hole/b  {first['distance']:.4g}, patch at row 2, column 3," in plain
    assert "re-weighted" not in plain
    top = good("score", bank, queries, "--top", 1, "--reweight", "top").splitlines()[1]
    told = f"(mean of the top 1 %, distance {first['distance']:.4g}), patch at row 2, column 3,"
    assert told in top
    listed = good("score", bank, queries)
    assert [name in listed for name in ("good/a", "hole/b", "hole/c, d")] == [True] * 3
    report = json.loads(good("score", bank, queries, "--top", 2, "--json"))
    assert (report["scores"], report["table"], report["maps"]) == (None, None, None)
    written = json.loads(good("score", bank, queries, "--csv", tmp_path / "s.csv", "--top", 2, "--json"))
    assert report["highest"] == written["highest"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "s.csv"])
    assert refused("score", bank, queries, "--top", 0).startswith("error: --top: expected at least 1, found 0")


def test_bad_values_name_file_image_and_place(tmp_path: Path, bank: Path, train: Path) -> None:
    maps = np.zeros((3, *GRID, 8), np.float32)
    maps[2, 3, 1, 5] = np.inf
    np.save(tmp_path / "maps.npy", maps)
    words = f"error: {tmp_path}/maps.npy: image 2, patch 16 (row 3, column 1) holds NaN or infinity; expected finite"
    one = (tmp_path / "maps.npy", "--axes", "bhwc")
    assert refused("build", *one, "--out", tmp_path / "b").startswith(words)
    assert refused("extend", bank, *one, "--out", tmp_path / "b").startswith(words)
    assert refused("score", bank, *one, "--csv", tmp_path / "s.csv").startswith(words)
    np.save(tmp_path / "flat.npy", maps.reshape(-1, 8))
    told = refused("score", bank, tmp_path / "flat.npy", "--patches", 20, "--csv", tmp_path / "s.csv")
    assert told.startswith(f"error: {tmp_path}/flat.npy: image 2, patch 16 holds NaN")
    few = ("--ratios", "10%", "--bank-precisions", "float32", "--index", "exact", "--timing", "0s")
    assert refused("tune", train / "rgb.npy", "--test", tmp_path / "maps.npy", *few).startswith(words)
    told = refused("tune", train / "rgb.npy", "--test", tmp_path / "flat.npy", "--patches", 20, *few)
    assert told.startswith(f"error: {tmp_path}/flat.npy: image 2, patch 16 holds NaN")


def test_maps_have_the_images_names(tmp_path: Path, bank: Path, queries: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    maps = tmp_path / "maps"
    good("score", bank, queries, "--out", tmp_path / "s.npz", "--maps", maps)
    assert sorted(str(path.relative_to(maps)) for path in maps.rglob("*.*")) == [
        "good/a.tiff", "hole/b.tiff", "hole/c, d.tiff",
    ]  # fmt: skip
    with np.load(tmp_path / "s.npz") as scores:
        expected = anomaly_map(scores["patch"], GRID, (32, 40)).numpy()
    found = tifffile.imread(maps / "hole" / "b.tiff")
    assert found.dtype == np.float32
    assert np.array_equal(found, expected[1])
    assert "--overwrite" in refused("score", bank, queries, "--maps", maps)
    (queries / "extraction.json").write_text(json.dumps({"grid": GRID, "image_size": 64}))
    good("score", bank, queries, "--maps", maps, "--overwrite")
    assert tifffile.imread(maps / "hole" / "b.tiff").shape == (64, 64)
    for ids, words in {
        ("a", "../b", "c"): "expected names that stay in the folder, found '../b'",
        ("a", "/b", "c"): "expected names that stay in the folder, found '/b'",
        ("a", "b", "a"): "expected a name for each image, found 'a' twice",
    }.items():
        (queries / "extraction.json").write_text(json.dumps({"grid": GRID, "ids": ids}))
        assert f"--maps: {words}" in refused("score", bank, queries, "--maps", tmp_path / "more")
    (queries / "extraction.json").unlink()
    assert "--maps: expected the grid of the patches of" in refused("score", bank, queries, "--maps", tmp_path / "more")
    assert not (tmp_path / "more").exists()
