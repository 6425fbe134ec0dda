"""Maps, layers, lists, dictionaries and nested folders are read as the rows that plain indexing gives."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmad_bank.bank import FeatureDump, MemoryBank, dumps, open_dump
from mmad_bank.bank.dumps import Layout
from mmad_bank.errors import InputError

DTYPES = {"npy": np.float16, "npz": np.float64, "safetensors": torch.bfloat16, "pt": torch.float16}


def rows_of(dump: FeatureDump) -> Tensor:
    return torch.cat([block for _, block in dump.blocks()])


def by_place(maps: Tensor) -> Tensor:
    """(B, C, H, W) to rows, place by place."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


@pytest.fixture
def maps() -> Tensor:
    """Return (B, C, H, W) values that float16 and bfloat16 hold."""
    return torch.randint(-64, 64, (5, 6, 3, 4), generator=torch.Generator().manual_seed(0)).float()


def write(path: Path, tensor: Tensor) -> None:
    kind = path.suffix[1:]
    if kind in ("npy", "npz"):
        array = tensor.numpy().astype(DTYPES[kind])
        (np.save if kind == "npy" else np.savez)(path, array)
    elif kind == "safetensors":
        save_file({"x": tensor.to(DTYPES[kind]).contiguous()}, path)
    else:
        torch.save(tensor.to(DTYPES[kind]), path)  # strides as they are


@pytest.mark.parametrize("layout", ["bchw", "bhwc"])
@pytest.mark.parametrize("kind", [*DTYPES, "tensor", "array"])
def test_maps_of_every_format_and_layout(
    tmp_path: Path, maps: Tensor, monkeypatch: pytest.MonkeyPatch, kind: str, layout: str
) -> None:
    stored = maps if layout == "bchw" else maps.permute(0, 2, 3, 1)
    features: object = stored if kind == "tensor" else stored.numpy() if kind == "array" else tmp_path / f"f.{kind}"
    if isinstance(features, Path):
        write(features, stored)
    dump = open_dump(features, layout=layout)  # type: ignore[arg-type]
    assert (len(dump), dump.dim, dump.sources[0].patches, dump.sources[0].grid) == (60, 6, 12, (3, 4))
    expected = by_place(maps)
    assert torch.equal(rows_of(dump), expected)
    assert torch.equal(torch.cat([block for _, block in dump.blocks(rows=7)]), expected)
    chosen = torch.tensor([59, 0, 13, 12, 47])
    assert torch.equal(dump.take(chosen), expected[chosen])
    monkeypatch.setattr(dumps, "_BLOCK_BYTES", 1)  # an image at a time, or a row
    step = 12 if layout == "bchw" else 1
    assert [first for first, _ in dump.blocks()] == [*range(0, 60, step)]
    bank = MemoryBank.build(features, size=9, layout=layout)  # type: ignore[arg-type]
    assert torch.equal(bank.vectors, MemoryBank.build(expected, size=9).vectors)
    origin = bank.provenance([3])[0]
    assert origin.place == divmod(origin.patch or 0, 4)


def test_a_layout_is_asked_for_unless_one_reading_is_possible(tmp_path: Path, maps: Tensor) -> None:
    np.save(tmp_path / "f.npy", maps.numpy())
    message = (
        r"f\.npy: shape \(5, 6, 3, 4\) can be read as bchw \(6 values at 3 x 4 places\) or bhwc \(4 values at 6 x 3"
        r" places\); expected a layout that says which by layout= \(--axes\)"
    )
    with pytest.raises(InputError, match=message + "$"):
        open_dump(tmp_path / "f.npy")
    assert torch.equal(rows_of(open_dump(tmp_path / "f.npy", dim=6)), by_place(maps))
    assert open_dump(tmp_path / "f.npy", dim=4).sources[0].grid == (6, 3)
    with pytest.raises(InputError, match=message + ": neither fits vectors of length 5$"):
        open_dump(tmp_path / "f.npy", dim=5)
    with pytest.raises(InputError, match=r"both fit vectors of length 6$"):
        open_dump(torch.zeros(2, 6, 6, 6), dim=6)
    bank = MemoryBank(torch.rand(3, 6))
    assert bank.extend(tmp_path / "f.npy", size=2) == 2  # the bank's length tells
    assert bank.provenance([3])[0].place is not None
    with pytest.raises(InputError, match=r"layout: expected one of auto, rows, bchw, bhwc, found 'nchw'"):
        open_dump(maps, layout="nchw")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"features: expected shape \(N, D\) or \(images, patches, D\), found"):
        open_dump(maps, layout="rows")
    with pytest.raises(InputError, match=r"features: expected maps \(bchw\), found \(3, 4\)"):
        open_dump(torch.zeros(3, 4), layout="bchw")
    with pytest.raises(InputError, match="features: expected key, layout, by_image and dim of open_dump, found"):
        open_dump(open_dump(maps, dim=6), layout="bchw")


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt", "nested.pt"])
def test_layers_are_chosen_by_key_or_joined(tmp_path: Path, kind: str) -> None:
    layers = {"layer2": torch.randn(3, 4, 8, 7), "layer3": torch.randn(3, 5, 4, 4), "other": torch.randn(7, 2)}
    path = tmp_path / f"f.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **{key: value.numpy() for key, value in layers.items()}, epoch=np.arange(3))
    elif kind == "safetensors":
        save_file({**layers, "epoch": torch.arange(3)}, path)
    else:
        torch.save({**layers, "epoch": 3} if kind == "pt" else {"features.": 1, "net": layers, "epoch": 3}, path)
    prefix = "net." if kind == "nested.pt" else ""
    one = open_dump(path, key=f"{prefix}layer3", layout="bchw")
    assert torch.equal(rows_of(one), by_place(layers["layer3"]))
    keys = [f"{prefix}layer2", f"{prefix}layer3"]
    both = open_dump(path, key=keys, layout="bchw")
    larger = torch.nn.functional.interpolate(layers["layer3"], size=(8, 7), mode="bilinear", align_corners=False)
    assert torch.equal(rows_of(both), by_place(torch.cat([layers["layer2"], larger], 1)))
    assert (both.dim, both.sources[0].grid, both.sources[0].images) == (9, (8, 7), 3)
    assert torch.equal(rows_of(open_dump(path, key=keys, dim=9)), rows_of(both))  # only one layout gives nine values
    assert torch.equal(rows_of(open_dump(path, key=f"{prefix}other")), layers["other"])
    shapes = {"layer2": r"\(3, 4, 8, 7\)", "layer3": r"\(3, 5, 4, 4\)", "other": r"\(7, 2\)"}
    listing = ", ".join(f"{prefix}{layer} float32 {shape}" for layer, shape in shapes.items())
    for key in (None, "layer4"):
        with pytest.raises(InputError, match=rf"f\.{kind}: expected .*found .*{listing}") as caught:
            open_dump(path, key=key)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected"):  # layers of other images
        open_dump(path, key=[f"{prefix}layer2", f"{prefix}other"], layout="bchw")


def test_layers_of_rows_are_put_side_by_side(tmp_path: Path) -> None:
    first, second = torch.randn(2, 10, 3), torch.randn(2, 10, 5)
    save_file({"a": first, "b": second, "c": torch.randn(2, 9, 5)}, tmp_path / "f.safetensors")
    dump = open_dump(tmp_path / "f.safetensors", key=["b", "a"])
    assert torch.equal(rows_of(dump), torch.cat([second, first], 2).view(20, 8))
    assert dump.sources[0].patches == 10
    with pytest.raises(InputError, match=r"f\.safetensors, c: expected 20 rows as the other layers have, found 18"):
        open_dump(tmp_path / "f.safetensors", key=["a", "c"])
    with pytest.raises(InputError, match="key: expected a name or several different names"):
        open_dump(tmp_path / "f.safetensors", key=["a", "a"])
    np.save(tmp_path / "g.npy", np.zeros((3, 4), np.float32))
    for features in (tmp_path / "g.npy", first):
        with pytest.raises(InputError, match="expected several arrays with names, found one without"):
            open_dump(features, key="a")


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
@pytest.mark.parametrize("axes", ["rows", "bchw"])
@pytest.mark.parametrize("told", ["suffix", "option"])
def test_dictionaries_of_images(tmp_path: Path, maps: Tensor, kind: str, axes: str, told: str) -> None:
    names = [f"good/{i:03}" + (".png" if told == "suffix" else "") for i in range(5)]
    values = maps if axes == "bchw" else by_place(maps).view(5, 12, 6)
    images = {name: value.contiguous() for name, value in zip(names, values, strict=True)}
    path = tmp_path / f"f.{kind}"
    if kind == "npz":
        np.savez(path, **{name: value.numpy() for name, value in images.items()})
    elif kind == "safetensors":
        save_file(images, path)
    else:
        torch.save(images, path)
    dump = open_dump(path, layout="bchw" if axes == "bchw" else "auto", by_image=told == "option")
    assert torch.equal(rows_of(dump), by_place(maps))
    assert dump.sources[0][:3] == (str(path), 60, 12)
    assert dump.sources[0].names == tuple(names)
    chosen = torch.tensor([59, 0, 13, 12, 47])
    assert torch.equal(dump.take(chosen), by_place(maps)[chosen])
    if told == "option":
        with pytest.raises(InputError, match="--by-image"):
            open_dump(path, layout="bchw")


def test_images_of_several_sizes_in_a_dictionary(tmp_path: Path) -> None:
    images = {"a.png": torch.randn(4, 2, 3), "b.png": torch.randn(4, 5, 3)}
    torch.save(images, tmp_path / "f.pt")
    dump = open_dump(tmp_path / "f.pt", layout="bchw")
    assert [(source.name(0), source.rows, source.grid) for source in dump.sources] == [
        ("a.png", 6, (2, 3)), ("b.png", 15, (5, 3)),
    ]  # fmt: skip
    assert torch.equal(rows_of(dump), torch.cat([by_place(value[None]) for value in images.values()]))
    images["b.png"][1, 2, 1] = torch.nan
    torch.save(images, tmp_path / "f.pt")
    with pytest.raises(InputError, match=r"f\.pt, b\.png: image 'b\.png', patch 7 \(row 2, column 1\) holds NaN"):
        rows_of(open_dump(tmp_path / "f.pt", layout="bchw"))
    with pytest.raises(InputError, match=r"shape \(4, 2, 3\) can be read as bchw"):
        open_dump(tmp_path / "f.pt")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("shape", "index", "layout", "place"),
    [
        ((60, 8), (41, 3), "auto", "row 41"),
        ((3, 20, 8), (2, 17, 3), "auto", "image 2, patch 17"),
        ((3, 4, 5, 8), (2, 3, 2, 3), "bhwc", r"image 2, patch 17 \(row 3, column 2\)"),
        ((3, 8, 4, 5), (2, 3, 3, 2), "bchw", r"image 2, patch 17 \(row 3, column 2\)"),
        ((8, 4, 5), (3, 3, 2), "bchw", r"image 0, patch 17 \(row 3, column 2\)"),
    ],
)
def test_bad_values_name_image_and_patch(
    tmp_path: Path, shape: tuple, index: tuple, layout: Layout, place: str, bad: float
) -> None:
    values = torch.rand(shape)
    values[index] = bad
    np.save(tmp_path / "f.npy", values.numpy())
    normal = torch.rand(50, 8)
    for features, name in ((values, "features"), (tmp_path / "f.npy", r"f\.npy")):
        words = f"{name}: {place} holds NaN or infinity; expected finite values"
        with pytest.raises(InputError, match=words):
            MemoryBank.build(features, layout=layout)
        with pytest.raises(InputError, match=words):
            MemoryBank(normal).extend(features, size=2, layout=layout)
        dump = open_dump(features, layout=layout)
        with pytest.raises(InputError, match=words):
            list(dump.blocks(rows=7))
        with pytest.raises(InputError, match=words):
            dump.take(torch.arange(len(dump)).flip(0))


def test_bad_values_name_the_image_by_its_name(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 5, 8), np.float32)
    values[1, 2, 4] = np.nan
    np.savez(tmp_path / "f.npz", features=values, names=["good/a", "good/b", "good/c"])
    with pytest.raises(InputError, match=r"f\.npz: image 1 \('good/b'\), patch 14 \(row 2, column 4\) holds NaN"):
        MemoryBank.build(tmp_path / "f.npz", layout="bhwc")


@pytest.mark.parametrize("legacy", [False, True])
def test_lists_of_tensors(tmp_path: Path, maps: Tensor, legacy: bool) -> None:
    def opened(value: object, **arguments: object) -> FeatureDump:
        torch.save(value, tmp_path / "f.pt", _use_new_zipfile_serialization=not legacy)
        return open_dump(tmp_path / "f.pt", **arguments)  # type: ignore[arg-type]

    rows = by_place(maps).view(5, 12, 6)
    images = opened(list(rows))  # (P, D) each
    assert torch.equal(rows_of(images), rows.view(-1, 6))
    assert (images.sources[0].images, images.sources[0].patches, images.sources[0].name(4)) == (5, 12, "f[4]")
    batches = opened((rows[:2], rows[2:]))  # (images, P, D) each
    assert torch.equal(rows_of(batches), rows.view(-1, 6))
    assert [source.images for source in batches.sources] == [2, 3]
    assert torch.equal(rows_of(opened(list(maps), layout="bchw")), by_place(maps))  # (C, H, W) each
    assert torch.equal(rows_of(opened([maps[:2], maps[2:]], layout="bchw")), by_place(maps))  # (B, C, H, W) each
    uneven = opened([rows[0], rows[1, :5]])
    assert [(source.name(0), source.rows) for source in uneven.sources] == [("f[0]", 12), ("f[1]", 5)]
    for value, words in (([], "at least one array"), ([rows[0], "text"], "a list of tensors, found str in it")):
        with pytest.raises(InputError, match=rf"f\.pt: expected {words}"):
            opened(value)
    with pytest.raises(InputError, match="expected arrays with names, found a list"):
        opened(list(rows), key="a")


def test_folders_in_folders(tmp_path: Path, maps: Tensor) -> None:
    rows = by_place(maps).view(5, 12, 6)
    for number, name in enumerate(("b/1", "a/2", "a/1", "a/.cache/9", ".partial/9", "c")):
        path = tmp_path / "dump" / f"{name}.{'NPY' if name == 'c' else 'npy'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.save(file, rows[number % 5].numpy())
    dump = open_dump(tmp_path / "dump")
    assert [source.name(0) for source in dump.sources] == ["a/1", "a/2", "b/1", "c"]
    assert torch.equal(rows_of(dump), rows[[2, 1, 0, 0]].view(-1, 6))
    torch.save(rows[:2], tmp_path / "dump" / "a" / "1.pt")
    assert [source.name(0) for source in open_dump(tmp_path / "dump").sources[:2]] == ["a/1.npy", "a/1.pt[0]"]


def test_only_arrays_that_may_be_features_are_candidates(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((4, 3))
    np.savez(tmp_path / "f.npz", x=values, labels=np.arange(4), scores=np.zeros(4), names=np.array(list("abcd")))
    assert len(open_dump(tmp_path / "f.npz")) == 4
    torch.save({"x": torch.zeros(4, 3), "labels": torch.arange(4), "scores": torch.zeros(4)}, tmp_path / "f.pt")
    assert len(open_dump(tmp_path / "f.pt")) == 4


def test_many_files_need_few_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for i in range(60):
        np.savez(tmp_path / f"{i:03}.npz", np.full((2, 3), i, np.float32))
        torch.save(torch.full((2, 3), 100.0 + i), tmp_path / f"x{i:03}.pt")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, limits[1]))
    try:
        found = rows_of(open_dump(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found[:, 0].tolist() == [value for start in (0, 100) for i in range(60) for value in (start + i,) * 2]


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    for kind in ("npz", "pt", "safetensors"):
        path = tmp_path / f"f.{kind}"
        for value in (1.0, 2.0):
            write(path, torch.full((3, 4), value))
            assert rows_of(open_dump(path)).unique().tolist() == [value]


def test_layers_of_an_archive_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {f"layer{i}": np.full((9, 2, 4, 4), i, np.float32) for i in range(3)}
    np.savez_compressed(tmp_path / "f.npz", **layers)
    dump = open_dump(tmp_path / "f.npz", key=list(layers), layout="bchw")
    opened: list[str] = []
    original = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name: opened.append(name) or original(self, name))
    for _ in dump.blocks(16):  # an image at a time, of all layers
        pass
    assert sorted(opened) == [f"{name}.npy" for name in layers]
