"""What is fuzzed: each kind of file that the package reads, tiny valid examples of it, and how it is read."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mutators as damage
import numpy as np
import torch

CATEGORY = "stud_tray"


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        name: On the command line.
        make: Writes the valid example, a file or a folder, at a path.
        files: What is damaged: names within the example ("" for an example that is one file), as glob patterns.
        mutators: What damages them; sentinel is a file that must never come to be.
        read: Reads the example as the package does, and uses it a little.
        share: Share of the mutants, in proportion: readers that build networks take longer.
        suffix: Suffix of the example's name.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    mutators: Callable[[str], Sequence[damage.Mutator]]
    files: tuple[str, ...] = ("",)
    share: float = 1.0
    suffix: str = ""


# Banks.


def _bank(path: Path, index: str = "exact", **options: object) -> None:
    from mmad_bank import MemoryBank

    rows = torch.rand(29, 10, 8, generator=torch.Generator().manual_seed(0))
    bank = MemoryBank.build(rows[:4], size=12, index=index, **options)
    bank.calibrate(rows[4:])
    bank.save(path)


def _read_bank(path: Path) -> None:
    """As ``info`` and one search do; without the FAISS index of a stranger, which is rebuilt."""
    from mmad_bank import MemoryBank

    bank = MemoryBank.load(path, rebuild_index=True)
    json.dumps(bank.metadata(), allow_nan=False)
    str((bank, bank.radius, bank.nbytes, bank.extractor, bank.sources, bank.standardization))
    bank.provenance()
    bank.search(torch.zeros(1, bank.dim), k=1)
    if bank.calibration is not None and bank.calibration.patches <= 10:
        str(bank.calibration)
        rule = bank.calibration.rule
        patches = torch.zeros(1, bank.calibration.patches, bank.dim)
        bank.judge(bank.score(patches, reweight=rule.reweight, n_neighbors=rule.n_neighbors, divisor=rule.divisor))
        bank.calibration.images.threshold(bank.calibration.images.smallest_rate / 5)  # extrapolated


def _multi_bank(path: Path) -> None:
    from mmad_bank import MemoryBank, MultiBank

    rows = torch.rand(12, 8, generator=torch.Generator().manual_seed(0))
    MultiBank({"rgb": MemoryBank(rows), "xyz": MemoryBank(rows[:, :3])}).save(path)


def _read_multi_bank(path: Path) -> None:
    from mmad_bank import MultiBank

    banks = MultiBank.load(path)
    banks.search({name: torch.zeros(1, bank.dim) for name, bank in banks.items()})


def _of_banks(file: str) -> Sequence[damage.Mutator]:
    if file.endswith(".json"):
        return (damage.json_text, damage.json_text, damage.any_bytes)
    return (
        damage.any_bytes,
        damage.safetensors_table,
        damage.safetensors_values,
        damage.bank_header,
        damage.bank_header,
        damage.bank_tensors,
    )


# Dumps.


def _rows(path: Path | io.BytesIO, order: str = "C") -> None:
    np.save(path, np.asarray(np.random.default_rng(0).random((4, 10, 8)), np.float32, order=order))


def _npz(path: Path) -> None:
    np.savez_compressed(
        path, features=np.random.default_rng(0).random((4, 10, 8)).astype(np.float32), labels=np.arange(4)
    )


def _pt(path: Path, zipped: bool = True) -> None:
    rows = {"features": torch.rand(4, 10, 8), "epoch": 3, "names": ["a", "b", "c", "d"]}
    torch.save(rows, path, _use_new_zipfile_serialization=zipped)


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"features": torch.rand(4, 10, 8), "labels": torch.arange(4)}, path)


def _layers(path: Path) -> None:
    layers = {"a": torch.rand(3, 4, 5, 6), "b": torch.rand(3, 2, 3, 3)}
    names = ["x", "y", "z"]
    if path.suffix == ".pt":
        torch.save({"net": layers, "names": names}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{f"net.{key}": value.numpy() for key, value in layers.items()}, names=np.array(names))
    else:
        from safetensors.torch import save_file

        save_file({f"net.{key}": value for key, value in layers.items()}, path, {"names": json.dumps(names)})


def _described(path: Path) -> None:
    path.mkdir()
    np.save(path / "maps.npy", np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32))
    facts = {"ids": ["x", "y", "z"], "split": "train", "grid": [5, 6]}
    facts["dumps"] = {"maps": {"file": "maps.npy", "dim": 4, "extractor": "net", "layout": "bchw"}}
    (path / "extraction.json").write_text(json.dumps(facts), encoding="utf-8")


def _read_dump(path: Path, **arguments: Any) -> None:
    from mmad_bank.bank import open_dump

    dump = open_dump(path, **arguments)
    for _ in dump.blocks(16):
        pass
    dump.take(torch.tensor([0, len(dump) - 1]))
    for source in dump.sources:
        source.name(source.images - 1)


def _of_zips(sentinel: str, file: str) -> Sequence[damage.Mutator]:
    change = {"data.pkl": damage.pickle_code, ".npy": damage.npy_header}
    return (
        damage.any_bytes,
        partial(damage.zip_members, change=change, sentinel=sentinel),
        partial(damage.zip_members, change=change, sentinel=sentinel),
    )


# Pictures and data sets.


def _picture(path: Path, kind: str, mode: str = "RGB", **options: object) -> None:
    from PIL import Image

    y, x = np.mgrid[:24, :32]
    image = Image.fromarray(np.stack([x * 7, y * 9, x + y], axis=-1).astype(np.uint8)).convert(mode)
    image.save(path, format=kind, **options)


def _depth(path: Path) -> None:
    from PIL import Image

    Image.fromarray((np.mgrid[:24, :32][1] * 900).astype(np.uint16)).save(path)


def _cloud(path: Path, compression: str | None = None) -> None:
    import tifffile

    values = np.random.default_rng(0).random((24, 32, 3)).astype(np.float32)
    tifffile.imwrite(path, values, photometric="rgb", compression=compression, description="mmad-bank prepared 0")


def _read_cloud(path: Path) -> None:
    from mmad_bank.data import _images

    _images.read_tag(path)
    _images.read_xyz(path)


def _image_reader(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        from mmad_bank.data import _images

        getattr(_images, name)(path)

    return read


def _eyecandy(path: Path) -> None:
    from data_trees import add_eyecandy

    mask = np.zeros((24, 24), bool)
    mask[:4] = True
    values = "anomalous: 1\nbumps: 1.0\ndents: 0.0\ncolors: 0.0\nnormals: 0.0\n"
    add_eyecandy(path / "Candy/test_public/data", "00", np.ones((24, 24)), anomalous=values, mask=mask)


def _read_eyecandy(path: Path) -> None:
    from mmad_bank.data import open_dataset

    open_dataset(path, "Candy", "test", "eyecandies")[0]


def _points(path: Path, kind: str) -> None:
    import open3d

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(np.random.default_rng(0).random((40, 3))))
    open3d.io.write_point_cloud(
        str(path), cloud, write_ascii=kind.startswith("text"), compressed=kind.startswith("pack")
    )


def _read_points(path: Path) -> None:
    from mmad_bank.data import open_points

    open_points(path)


def _toy(path: Path) -> None:
    points = np.random.default_rng(0).random((40, 3))
    (path / "duck" / "test").mkdir(parents=True)
    (path / "duck" / "gt").mkdir()
    _points(path / "duck" / "test" / "0_bulge.pcd", "binary.pcd")
    np.savetxt(path / "duck" / "gt" / "0_bulge.txt", np.column_stack([points, points[:, 0] > 0.5]), fmt="%.6f")


def _read_toy(path: Path) -> None:
    from mmad_bank.data import open_dataset

    _ = open_dataset(path, split="test")[0]


def _visa(path: Path) -> None:
    from data_trees import add_visa

    add_visa(path, train=1, test=1)


def _read_visa(path: Path) -> None:
    from mmad_bank.data import open_dataset

    for split in ("train", "test"):
        _ = [open_dataset(path, split=split)[number] for number in range(1)]


def _prepared(path: Path) -> None:
    from data_trees import add_sample

    from mmad_bank.data.preparation import prepare

    add_sample(path.with_name("raw") / CATEGORY / "train/good")
    prepare(path.with_name("raw"), path, categories=[CATEGORY])


def _read_prepared(path: Path) -> None:
    from mmad_bank.data import open_dataset

    samples = open_dataset(path, CATEGORY, "train")
    samples[0]
    str(samples.preparation)


def _stages(path: Path) -> None:
    from mmad_bank._internal.resume import Stages

    Stages(path, {"seed": 0, "data": ["a", "b"]}).run("numbers.txt", lambda file: file.write_text("1 2 3"))


def _read_stages(path: Path) -> None:
    from mmad_bank._internal.resume import Stages, fingerprint_of

    fingerprint_of(path)
    Stages(path, {"seed": 0, "data": ["a", "b"]}).run("numbers.txt", lambda file: file.write_text("1 2 3"))


# Networks and models.


def _checkpoint(path: Path) -> None:
    from mmad_bank.fusion import FeatureFusion

    # A NumPy number beside the weights, as published checkpoints have.
    torch.save({"model": FeatureFusion(6, 4).state_dict(), "best": np.float64(0.5), "epoch": 3}, path)


def _read_checkpoint(path: Path) -> None:
    from mmad_bank.fusion import FeatureFusion

    FeatureFusion(6, 4).load_checkpoint(path)


def _weights(path: Path) -> None:
    from safetensors.torch import save_file

    from mmad_bank.fusion import FeatureFusion

    save_file(FeatureFusion(6, 4).state_dict(), path)


def _mapping(path: Path) -> None:
    from mmad_bank.methods.cfm import CrossmodalMapping

    torch.save(CrossmodalMapping(6, 4).state_dict(), path, _use_new_zipfile_serialization=False)


def _read_mapping(path: Path) -> None:
    from mmad_bank.methods.cfm import CrossmodalMapping

    CrossmodalMapping(6, 4).load_checkpoint(path)


# Files of other libraries.


def _flat_index(path: Path) -> None:
    from mmad_bank.integrations.faiss import IndexFlatL2, write_index

    index = IndexFlatL2(5)
    index.add(np.random.default_rng(0).random((7, 5)))
    write_index(index, path)


def _read_flat_index(path: Path) -> None:
    from mmad_bank.integrations.faiss import read_index

    index = read_index(path)
    index.search(np.zeros((1, index.d)), 2)


def _patchcore_checkpoint(path: Path) -> None:
    state = {"model.memory_bank": torch.rand(9, 4, generator=torch.Generator().manual_seed(0))}
    torch.save({"state_dict": state, "hyper_parameters": {"num_neighbors": 9}, "epoch": 1}, path)


def _read_patchcore_checkpoint(path: Path) -> None:
    from mmad_bank.integrations.anomalib import to_bank

    bank = to_bank(path)
    bank.search(torch.zeros(1, bank.dim))


_SMALL = {"rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "image_size": 64, "grid": (8, 8)}


def _model(name: str, path: Path, *, checksums: bool = True, **options: object) -> None:
    from mmad_bank.data import open_dataset
    from mmad_bank.methods import method_class
    from mmad_bank.synthetic import write_synthetic

    raw = path.with_name("raw")
    write_synthetic(raw, size=64, n_train=2, n_validation=1, n_test=1, categories=[CATEGORY])
    method_class(name)(**_SMALL, **options).fit(open_dataset(raw, CATEGORY, "train")).save(path)
    if not checksums:  # as version 0.1 wrote it: damage to its files gets past the manifest
        manifest = json.loads((path / "model.json").read_text(encoding="utf-8"))
        rest = {key: value for key, value in manifest.items() if key not in ("checksum", "files")}
        (path / "model.json").write_text(json.dumps(rest), encoding="utf-8")


def _read_model(path: Path) -> None:
    from mmad_bank import methods

    method = methods.load(path)
    str((method.arguments(), method.train_ids_, method.skipped_))


def _describe_model(path: Path) -> None:
    """As ``info`` does."""
    from mmad_bank.cli.info import describe_model

    facts, _ = describe_model(path, verify=True)
    json.dumps(facts, allow_nan=False)


def _of_models(file: str) -> Sequence[damage.Mutator]:
    if file.endswith("model.json"):
        return (damage.model_manifest,) * 4 + (damage.json_text, damage.any_bytes)
    if file.endswith(".json"):
        return (damage.json_text,) * 5 + (damage.any_bytes,)
    return (damage.any_bytes, damage.safetensors_table, damage.safetensors_values)


def _same(*mutators: damage.Mutator) -> Callable[[str], Sequence[damage.Mutator]]:
    return lambda file: mutators


def readers(sentinel: str) -> list[Reader]:
    """List all readers. No mutant may make the file ``sentinel``."""
    zips = partial(_of_zips, sentinel)
    safe = _same(damage.any_bytes, damage.safetensors_table, damage.safetensors_table, damage.safetensors_values)
    anything, json_file = _same(damage.any_bytes), _same(damage.json_text, damage.json_text, damage.any_bytes)
    tiff, png = _same(damage.any_bytes, damage.tiff_tags, damage.tiff_tags), _same(damage.any_bytes, damage.png_chunks)
    words = _same(damage.words, damage.words, damage.any_bytes)
    layers = partial(_read_dump, key=["net.a", "net.b"], layout="bchw")
    found = [
        Reader("bank", _bank, _read_bank, _of_banks, share=2),
        Reader(
            "bank-projected",
            partial(_bank, projection_dim=4, standardize=True, extractor="a net"),
            _read_bank,
            _of_banks,
            share=2,
        ),
        Reader("multi-bank", _multi_bank, _read_multi_bank, _of_banks, ("banks.json", "banks.json", "*.safetensors")),
        Reader(
            "npy",
            _rows,
            _read_dump,
            _same(damage.any_bytes, damage.npy_header, damage.npy_header),
            suffix=".npy",
            share=2,
        ),
        Reader(
            "npy-fortran",
            partial(_rows, order="F"),
            _read_dump,
            _same(damage.any_bytes, damage.npy_header),
            suffix=".npy",
        ),
        Reader("npz", _npz, _read_dump, zips, suffix=".npz"),
        Reader("pt", _pt, _read_dump, zips, suffix=".pt", share=2),
        Reader(
            "pt-old", partial(_pt, zipped=False), _read_dump, _same(damage.any_bytes, damage.pickle_code), suffix=".pt"
        ),
        Reader("safetensors", _safetensors, _read_dump, safe, suffix=".safetensors"),
        Reader("npz-layers", _layers, layers, zips, suffix=".npz"),
        Reader("pt-layers", _layers, layers, zips, suffix=".pt"),
        Reader("safetensors-layers", _layers, layers, safe, suffix=".safetensors"),
        Reader("described", _described, _read_dump, _same(damage.json_text, damage.any_bytes), ("extraction.json",)),
        Reader("png", partial(_picture, kind="PNG"), _image_reader("read_rgb"), png, suffix=".png"),
        Reader(
            "png-palette",
            partial(_picture, kind="PNG", mode="P"),
            _image_reader("read_rgb"),
            png,
            suffix=".png",
            share=0.5,
        ),
        Reader("jpeg", partial(_picture, kind="JPEG"), _image_reader("read_rgb"), anything, suffix=".jpg"),
        Reader("bmp", partial(_picture, kind="BMP"), _image_reader("read_rgb"), anything, suffix=".bmp"),
        *(
            Reader(
                kind.lower(),
                partial(_picture, kind=kind),
                _image_reader("read_rgb"),
                anything,
                suffix=suffix,
                share=0.5,
            )
            for kind, suffix in (("WEBP", ".webp"), ("GIF", ".gif"), ("JPEG2000", ".jp2"), ("PPM", ".ppm"))
        ),
        Reader("png-16", _depth, _image_reader("read_rgb"), png, suffix=".png", share=0.5),
        Reader("tiff-color", partial(_picture, kind="TIFF"), _image_reader("read_rgb"), tiff, suffix=".tif"),
        Reader(
            "tiff-packed",
            partial(_picture, kind="TIFF", compression="tiff_lzw"),
            _image_reader("read_rgb"),
            tiff,
            suffix=".tif",
        ),
        Reader("mask", partial(_picture, kind="PNG", mode="L"), _image_reader("read_mask"), png, suffix=".png"),
        Reader(
            "mask-1", partial(_picture, kind="PNG", mode="1"), _image_reader("read_mask"), png, suffix=".png", share=0.5
        ),
        Reader("depth", _depth, _image_reader("read_depth"), png, suffix=".png"),
        Reader("cloud", _cloud, _read_cloud, tiff, suffix=".tiff", share=2),
        Reader("cloud-packed", partial(_cloud, compression="zlib"), _read_cloud, tiff, suffix=".tiff", share=2),
        Reader(
            "eyecandies",
            _eyecandy,
            _read_eyecandy,
            words,
            ("Candy/test_public/data/*.yaml", "Candy/test_public/data/*.txt"),
        ),
        *(
            Reader(f"points-{kind}", partial(_points, kind=kind), _read_points, words, suffix=kind[-4:])
            for kind in ("text.pcd", "binary.pcd", "packed.pcd", "text.ply", "binary.ply")
        ),
        Reader("points-labels", _toy, _read_toy, words, ("duck/gt/0_bulge.txt",)),
        Reader("visa", _visa, _read_visa, words, ("split_csv/1cls.csv", "candle/image_anno.csv")),
        Reader("prepared", _prepared, _read_prepared, json_file, ("prepared.json",)),
        Reader("stages", _stages, _read_stages, json_file, ("stages.json",)),
        Reader("checkpoint", _checkpoint, _read_checkpoint, zips, suffix=".pth"),
        Reader("checkpoint-old", _mapping, _read_mapping, _same(damage.any_bytes, damage.pickle_code), suffix=".pth"),
        Reader("faiss-flat", _flat_index, _read_flat_index, anything),
        Reader("anomalib", _patchcore_checkpoint, _read_patchcore_checkpoint, zips, suffix=".ckpt"),
        Reader("weights", _weights, _read_checkpoint, safe, suffix=".safetensors"),
        Reader(
            "model-info",
            partial(_model, "patchcore", checksums=False),
            _describe_model,
            _of_models,
            ("model.json",) * 6 + ("banks/banks.json", "banks/*.safetensors"),
        ),
        *(
            Reader(
                name if checksums else f"{name}-0.1",
                partial(_model, name, checksums=checksums, **options),
                _read_model,
                _of_models,
                ("model.json",) * 6 + ("*.safetensors", "banks/banks.json", "banks/*.safetensors"),
                share=0.2,
            )
            for name, options in _MODELS.items()
            for checksums in (True, False)
        ),
    ]
    return found


_MODELS: dict[str, dict[str, object]] = {
    "patchcore": {},
    "m3dm": {"xyz": "fpfh", "uff_steps": 1, "uff_batch": 2, "uff_patches": 16},
    "cfm": {"xyz": "fpfh", "map_size": 16, "epochs": 1, "batch": 1, "pixels_per_image": 50},
}


def files_of(reader: Reader, example: Path) -> list[Path]:
    """List the files of an example that may be damaged, as often as they are to be."""
    found = [path for pattern in reader.files for path in (sorted(example.glob(pattern)) if pattern else [example])]
    return [path for path in found if path.is_file()]


def mutate(reader: Reader, file: Path, data: bytes, rng: random.Random) -> bytes:
    """Damage a file's content."""
    return rng.choice(reader.mutators(file.name))(rng, data)
