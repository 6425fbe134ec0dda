"""Names, grids and extractors come with dumps, into banks and out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmad_bank.bank import MemoryBank, Source, open_dump
from mmad_bank.errors import FormatError, InputError

NAMES = ("bagel/good/000", "bagel/good/001", "bagel/hole/Loch ä")


@pytest.fixture
def values() -> torch.Tensor:
    return torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0))


def describe(folder: Path, **facts: Any) -> None:
    (folder / "extraction.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize("key", ["names", "ids"])
@pytest.mark.parametrize("kind", ["npz", "bytes.npz", "pt", "safetensors"])
@pytest.mark.parametrize("flat", [False, True])
def test_names_inside_files(tmp_path: Path, values: torch.Tensor, kind: str, key: str, flat: bool) -> None:
    stored = values.view(36, 5) if flat else values
    path = tmp_path / f"f.{kind}"
    if kind.endswith("npz"):
        told = np.array(NAMES) if kind == "npz" else np.array([name.encode() for name in NAMES])
        np.savez_compressed(path, x=stored.numpy(), **{key: told})
    elif kind == "pt":
        torch.save({"x": stored, key: list(NAMES)}, path)
    else:
        save_file({"x": stored.clone()}, path, {key: json.dumps(NAMES)})
    dump = open_dump(path)
    assert dump.sources == [Source(str(path), 36, 12, None, NAMES)]  # flat rows are cut into as many images
    bank = MemoryBank.build(path, size=5, start=31)
    assert bank.provenance([0])[0] == (str(path), 31, 2, 7, NAMES[2], None)


def test_wrong_names_inside_files(tmp_path: Path, values: torch.Tensor) -> None:
    array = values.numpy()
    np.savez(tmp_path / "few.npz", x=array, names=np.array(["a", "b"]))
    np.savez(tmp_path / "pickled.npz", x=array, names=np.array(["a", "b", "c"], dtype=object))
    np.savez(tmp_path / "table.npz", x=array, names=np.array([["a"], ["b"], ["c"]]))
    torch.save({"x": values, "names": ["a", 2, "c"]}, tmp_path / "mixed.pt")
    save_file({"x": values}, tmp_path / "text.safetensors", {"names": "a b c"})
    for name, words in {
        "few.npz": "expected a name for each of the 3 images of .*few.npz, found 2",
        "pickled.npz": r"its names are pickled Python objects, which are never run; expected text",
        "table.npz": r"expected one-dimensional names, found <U1 \(3, 1\)",
        "mixed.pt": "expected its names to be a list of text",
        "text.safetensors": "expected its names to be a list of text",
    }.items():
        with pytest.raises(InputError, match=f"{name}: {words}") as caught:
            open_dump(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_files_name_their_images(tmp_path: Path, values: torch.Tensor) -> None:
    np.save(tmp_path / "left.npy", values[0].numpy())
    np.save(tmp_path / "right.npy", values[1:].numpy())
    assert [[one.name(i) for i in range(one.images)] for one in open_dump(tmp_path).sources] == [
        ["left"], ["right[0]", "right[1]"],
    ]  # fmt: skip
    assert MemoryBank.build(tmp_path, size=1, start=24).provenance()[0].name == "right[1]"


def test_extraction_tells_extractor_names_and_grid(tmp_path: Path, values: torch.Tensor) -> None:
    np.save(tmp_path / "rgb.npy", values.numpy())
    np.save(tmp_path / "other.npy", values.numpy())
    entry = {"file": "/elsewhere/rgb.npy", "dim": 5, "extractor": "net A", "grid": [3, 4]}
    describe(tmp_path, ids=NAMES, split="train", dumps={"rgb": entry})
    dump = open_dump(tmp_path / "rgb.npy")
    assert dump.extractor == "net A"
    assert dump.sources == [Source(str(tmp_path / "rgb.npy"), 36, 12, (3, 4), NAMES)]
    assert open_dump(tmp_path / "other.npy").sources == [Source(str(tmp_path / "other.npy"), 36, 12)]
    bank = MemoryBank.build(tmp_path / "rgb.npy", size=4, start=18)
    assert bank.extractor == "net A"
    assert bank.provenance([0])[0][2:] == (1, 6, NAMES[1], (1, 2))
    assert MemoryBank.build(tmp_path / "rgb.npy", size=4, extractor="mine").extractor == "mine"
    bank.save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank")
    assert loaded.sources == bank.sources
    assert loaded.provenance() == bank.provenance()
    describe(tmp_path, extractor="net B", ids=NAMES, grid=[3, 4])  # by hand: of all files beside it
    assert open_dump(tmp_path / "other.npy").extractor == "net B"
    with pytest.raises(
        InputError, match=r"rgb\.npy: expected features of the extractor 'net A' as in the bank, found 'net B'"
    ):
        loaded.extend(tmp_path / "rgb.npy", size=1)
    assert loaded.extend(values + 9, size=1) == 1  # nobody knows what made these


def test_extraction_describes_folders_and_maps(tmp_path: Path, values: torch.Tensor) -> None:
    for number, name in enumerate(("a/2", "a/10", "b")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", values[number].T.reshape(5, 3, 4).numpy())
    describe(tmp_path, extractor="net", grid=[3, 4], dim=5, layout="bchw")
    dump = open_dump(tmp_path)
    assert [(source.name(0), source.grid) for source in dump.sources] == [
        ("a/10", (3, 4)), ("a/2", (3, 4)), ("b", (3, 4))
    ]  # fmt: skip
    assert torch.equal(torch.cat([rows for _, rows in dump.blocks()]), values[[1, 0, 2]].view(36, 5))
    describe(tmp_path, ids=NAMES, layout="bchw")
    assert [source.name(0) for source in open_dump(tmp_path).sources] == list(NAMES)
    np.save(tmp_path / "b.npy", values.permute(0, 2, 1).reshape(3, 5, 3, 4).numpy())
    describe(tmp_path, grid=[3, 4])  # the grid tells the layout
    assert open_dump(tmp_path / "b.npy").dim == 5


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"ids": ["a", "b"]}, r"expected a name for each of the 3 images of .*rgb\.npy, found 2"),
        ({"ids": ["a", 1, "c"]}, "expected ids to be a list of text"),
        ({"grid": [4, 4]}, r"expected the grid of .*rgb\.npy, whose images have 12 patches, found 4 x 4"),
        ({"grid": [12]}, r"expected grid to be \[rows, columns\], found \[12\]"),
        ({"grid": [True, 12]}, "expected grid to be"),
        ({"extractor": 7}, "expected extractor to be str, found 7"),
        ({"dim": "5"}, "expected dim to be int, found '5'"),
        ({"layout": "nchw"}, "layout: expected one of auto, rows, bchw, bhwc, found 'nchw'"),
    ],
)
def test_wrong_extractions_are_one_line(tmp_path: Path, values: torch.Tensor, facts: dict, words: str) -> None:
    np.save(tmp_path / "rgb.npy", values.numpy())
    describe(tmp_path, **facts)
    with pytest.raises(InputError, match=rf"extraction\.json: {words}") as caught:
        open_dump(tmp_path / "rgb.npy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"{" * 100_000, b'{"ids": '])
def test_damaged_extractions_are_named(tmp_path: Path, values: torch.Tensor, content: bytes) -> None:
    np.save(tmp_path / "rgb.npy", values.numpy())
    (tmp_path / "extraction.json").write_bytes(content)
    with pytest.raises(InputError, match=r"extraction\.json: "):
        open_dump(tmp_path / "rgb.npy")


def test_dumps_of_two_extractors_make_no_bank(tmp_path: Path, values: torch.Tensor) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "rgb.npy", values.numpy())
        describe(tmp_path / name, extractor=f"net {name}")
    with pytest.raises(InputError, match=r"b/rgb\.npy: expected features of the extractor 'net a' .*, found 'net b'"):
        open_dump([tmp_path / "a" / "rgb.npy", tmp_path / "b" / "rgb.npy"])


@pytest.mark.parametrize(
    "images",
    [
        3, [3], [{}], [], [{"grid": [3, 4], "names": None}] * 2, [{"grid": [5, 5], "names": None}],
        [{"grid": "ab", "names": None}], [{"grid": None, "names": ["a"]}], [{"grid": None, "names": [1, 2, 3]}],
    ],
    ids=str,
)  # fmt: skip
def test_altered_names_of_a_bank_are_refused(tmp_path: Path, values: torch.Tensor, images: Any) -> None:
    bank = MemoryBank.build(values, size=4)
    header = {**bank.metadata(), "images": images}
    from mmad_bank.bank import file_format

    tensors = {"vectors": bank.vectors, "source_rows": bank.source_rows}
    file_format.write(tmp_path / "bank", header, tensors)
    if images == []:  # a bank of features without names
        assert MemoryBank.load(tmp_path / "bank").sources == bank.sources
        return
    with pytest.raises(FormatError, match=r"altered, (its header does not describe a memory bank|expected)"):
        MemoryBank.load(tmp_path / "bank")


def test_banks_from_before_names_are_read(tmp_path: Path, values: torch.Tensor) -> None:
    from mmad_bank.bank import file_format

    bank = MemoryBank.build(values, size=4, start=13)
    header = {key: value for key, value in bank.metadata().items() if key != "images"}
    file_format.write(tmp_path / "bank", header, {"vectors": bank.vectors, "source_rows": bank.source_rows})
    assert MemoryBank.load(tmp_path / "bank").provenance([0])[0] == ("features", 13, 1, 1, "features[1]", None)
