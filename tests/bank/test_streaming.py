"""Banks of streams: they cover all that they have seen as well as they say, in their budget, over restarts."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmad_bank import MemoryBank, StreamingBank, ops
from mmad_bank.bank.stream_nets import LEAST_FACTOR, plan, proved
from mmad_bank.bank.streaming import FORGOTTEN
from mmad_bank.errors import FormatError, InputError
from mmad_bank.synthetic.textures import texture_features

GENERATOR = torch.Generator().manual_seed(0)
CENTERS = torch.randn(60, 8, generator=GENERATOR)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


STREAMS: dict[str, Tensor] = {
    "random": normal(3000, 8),
    "plane": torch.rand(3000, 2, generator=GENERATOR),
    "clusters": CENTERS[torch.randint(60, (3000,), generator=GENERATOR)] + 0.02 * normal(3000, 8),
    "clusters one after another": CENTERS.repeat_interleave(50, 0) + 0.02 * normal(3000, 8),
    "drifting": normal(3000, 3).cumsum(0),
    "farther and farther": 1.3 ** torch.arange(100).repeat_interleave(20)[:, None] * torch.rand(2000, 2),
    "nearer and nearer": 0.7 ** torch.arange(60).repeat_interleave(30)[:, None] * normal(1800, 2),
    "by the first value": normal(3000, 4).sort(0).values,
    "copies": normal(7, 4).repeat(200, 1),
    "one value": torch.ones(300, 3),
}
"""Rows in orders that are kind and that are not: farther and farther is the doubling algorithm's worst."""


def covering_radius(rows: Tensor, bank: Tensor) -> float:
    """Compute it in float64, without the engine."""
    return float(torch.cdist(rows.double(), bank.double()).amin(1).max())


@pytest.mark.parametrize("block", [1000, 61])
@pytest.mark.parametrize(("size", "factor"), [(1, 4.0), (2, 8.0), (20, 8.0), (20, 4.0), (20, 2.5), (90, 4.0)])
@pytest.mark.parametrize("name", STREAMS)
def test_all_rows_seen_are_covered_as_well_as_promised(name: str, size: int, factor: float, block: int) -> None:
    rows = STREAMS[name]
    stream = StreamingBank(size, factor=factor)
    for number, part in enumerate(rows.split(block)):
        stream.update(part)
        seen = rows[: number * block + len(part)]
        assert 1 <= len(stream) <= size
        assert stream.rows_seen == len(seen)
        if number % 7 and len(seen) < len(rows):
            continue
        bank = stream.bank
        assert torch.equal(bank.vectors, seen[bank.source_rows])
        radius = covering_radius(seen, bank.vectors)
        assert radius <= stream.radius * (1 + 1e-5) + 1e-6
        assert stream.radius <= factor * stream.optimum * (1 + 1e-5)
        greedy = ops.k_center_greedy(seen, min(size, len(seen)), return_radius=True).covering_radius
        assert stream.optimum <= greedy * (1 + 1e-5)  # no choice leaves less than the optimum


def test_the_optimum_is_below_that_of_every_choice() -> None:
    for size in (1, 2, 3):
        rows = normal(12, 2)
        stream = StreamingBank(size)
        for row in rows:
            stream.update(row[None])
        best = min(covering_radius(rows, rows[list(chosen)]) for chosen in itertools.combinations(range(12), size))
        # Centers may lie anywhere, which at most halves the radius.
        assert 0 < stream.optimum <= best
        assert covering_radius(rows, stream.bank.vectors) <= 4 * best


def test_a_bank_that_holds_all_rows_covers_them_exactly() -> None:
    stream = StreamingBank(50)
    assert stream.update(STREAMS["random"][:50]) == 50
    assert stream.update(STREAMS["random"][:50]) == 0
    assert (stream.radius, stream.optimum, len(stream)) == (0.0, 0.0, 50)
    assert stream.update(STREAMS["random"][50:51]) >= 0
    assert 0 < stream.radius <= 4 * stream.optimum


def test_it_is_about_as_good_as_the_offline_selection_on_real_features() -> None:
    features = texture_features(10, split="train")
    stream = StreamingBank(300)
    for image in np.split(features, 10):
        stream.update(image)
    greedy = ops.k_center_greedy(features, 300, return_radius=True).covering_radius
    radius = covering_radius(torch.from_numpy(features), stream.bank.vectors)
    assert greedy / 2 <= radius <= 1.5 * greedy
    assert len(stream) > 300 * 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["random", "farther and farther", "copies"])
def test_a_device_makes_the_same_bank(tmp_path: Path, name: str) -> None:
    here, there = StreamingBank(20), StreamingBank(20, device="cuda")
    for part in STREAMS[name].split(150):
        here.update(part)
        there.update(part)
        there.save(tmp_path / "bank")
        there = StreamingBank.load(tmp_path / "bank", device="cuda")
    assert there.bank.device.type == "cuda"
    assert torch.equal(there.bank.source_rows.cpu(), here.bank.source_rows)
    assert there.radius == pytest.approx(here.radius, rel=1e-5)


@pytest.mark.parametrize("factor", [8.0, 5.2, 4.0, 3.0, 2.5, LEAST_FACTOR])
def test_the_plan_proves_the_factor(factor: float) -> None:
    growth, number = plan(factor)
    assert 2 < proved(growth, number) <= factor * (1 + 1e-9)
    assert number == 1 or proved(float(number), number - 1) > factor


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", ["random", "farther and farther", "drifting", "copies"])
def test_a_restart_changes_nothing(tmp_path: Path, name: str, standardize: bool) -> None:
    whole, stream = StreamingBank(20, standardize=standardize), StreamingBank(20, standardize=standardize)
    for number, part in enumerate(STREAMS[name].split(150)):
        whole.update(part)
        stream.update(part, note={"part": number})
        stream.save(tmp_path / "bank")
        stream = StreamingBank.load(tmp_path / "bank")
        assert stream.note == {"part": number}
    whole.update(STREAMS[name][:1], note=stream.note)
    stream.update(STREAMS[name][:1])
    whole.save(tmp_path / "whole")
    stream.save(tmp_path / "bank")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "bank").read_bytes()
    assert stream.radius == whole.radius


def test_standardized_distances_and_radius() -> None:
    rows = 5 + 3 * STREAMS["random"]
    plain, stream = StreamingBank(20), StreamingBank(20, standardize=True)
    for part in rows.split(500):
        plain.update(part)
        stream.update(part)
    bank = stream.bank
    assert bank.standardization is not None
    assert bank.standardization.mean == pytest.approx(float(rows.double().mean()), rel=1e-6)
    assert bank.standardization.std == pytest.approx(float(rows.double().std()), rel=1e-6)
    assert torch.equal(bank.vectors, plain.bank.vectors)
    assert stream.radius == pytest.approx(plain.radius / bank.standardization.std)
    assert bank.radius == stream.radius
    assert float(bank.search(rows)[0].max()) <= stream.radius


def test_the_bank_is_a_bank_as_any_other(tmp_path: Path) -> None:
    stream = StreamingBank(30)
    stream.update(STREAMS["random"])
    bank = stream.bank
    assert bank.radius == stream.radius
    bank.save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank")
    assert torch.equal(loaded.search(STREAMS["random"])[0], bank.search(STREAMS["random"])[0])
    assert len(pickle.loads(pickle.dumps(bank))) == len(bank)
    stream.update(STREAMS["random"] + 100)
    assert torch.equal(bank.vectors, loaded.vectors), "a bank that was asked for stays as it is"


def test_extending_takes_the_stream_out(tmp_path: Path) -> None:
    stream = StreamingBank(30)
    stream.update(STREAMS["random"])
    bank = stream.bank
    assert bank.extend(STREAMS["random"] + 100, size=3) == 3
    assert stream.bank.stream is not None
    assert len(stream.bank) == len(bank) - 3
    bank.save(tmp_path / "bank")
    with pytest.raises(InputError, match=r"bank: expected the bank of a stream, .* built or extended"):
        StreamingBank.load(tmp_path / "bank")


def test_a_calibration_stays_until_the_vectors_are_others(tmp_path: Path) -> None:
    stream = StreamingBank(30)
    stream.update(STREAMS["random"].view(-1, 20, 8))
    bank = stream.bank
    bank.calibrate(normal(40, 20, 8))
    bank.save(tmp_path / "bank")
    stream = StreamingBank.load(tmp_path / "bank")
    stream.update(STREAMS["random"][:20])
    same = stream.bank.calibration
    assert same is not None
    assert not same.outdated
    assert stream.update(STREAMS["random"][:20] + 50) > 0
    calibration = stream.bank.calibration
    assert calibration is not None
    assert calibration.outdated
    assert torch.equal(calibration.images.scores, same.images.scores)


def test_provenance_counts_through_all_that_was_seen(tmp_path: Path) -> None:
    stream = StreamingBank(12)
    for number in range(200):
        np.save(tmp_path / f"{number:03}.npy", normal(1, 9, 4).numpy())
        stream.update(tmp_path / f"{number:03}.npy")
        assert len(stream.bank.sources) <= 12 * (1 + 4) * 2 + 1
    bank = stream.bank
    assert sum(source.rows for source in bank.sources) == stream.rows_seen == 1800
    assert any(source.file == FORGOTTEN for source in bank.sources)
    for vector, origin, row in zip(bank.vectors, bank.provenance(), bank.source_rows.tolist(), strict=True):
        assert origin.file == str(tmp_path / f"{row // 9:03}.npy")
        assert (origin.row, origin.image, origin.patch) == (row % 9, 0, row % 9)
        assert np.array_equal(np.load(origin.file)[0, origin.row], vector.numpy())


def test_features_are_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    stream = StreamingBank(10)
    stream.update(STREAMS["random"][:500], note={"n": 1})
    stream.save(tmp_path / "before")
    bad = STREAMS["random"].repeat(100, 1).clone()
    bad[-1, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        stream.update(bad, note={"n": 2})

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.update(STREAMS["random"] + 99, note={"n": 2}, progress=stop)
    stream.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0}, "size: expected 1 to"),
        ({"size": 2.5}, "size: expected an integer"),
        ({"size": 5, "factor": 2.0}, r"factor: expected at least 2\.17 \(4 is the default\), found 2\.0"),
        ({"size": 5, "factor": float("nan")}, "factor: expected"),
        ({"size": 5, "bank_precision": "tiny"}, "bank_precision: expected one of"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        StreamingBank(**arguments)  # type: ignore[arg-type]


def test_bad_features_are_named() -> None:
    stream = StreamingBank(5)
    with pytest.raises(InputError, match="bank: expected features before it is asked for"):
        stream.bank  # noqa: B018
    stream.update(STREAMS["random"])
    with pytest.raises(InputError, match="expected vectors of length 8 as in the bank, found 3"):
        stream.update(STREAMS["one value"])
    with pytest.raises(InputError, match="features: row 1 has a norm above 1e18"):
        stream.update(torch.tensor([[0.0] * 8, [1e30] * 8]))
    constant = StreamingBank(5, standardize=True)
    constant.update(STREAMS["one value"])
    with pytest.raises(InputError, match="standardize: expected features that vary"):
        constant.bank  # noqa: B018


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    stream = StreamingBank(8, standardize=True)
    stream.update(STREAMS["plane"])
    stream.save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def altered(path: Path, change: object) -> None:
    """Write a bank file with another header whose checksums are right."""
    from mmad_bank.bank import file_format

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["mmad_bank"])
    tensors = load_file(path)
    change(header["stream"], tensors)  # type: ignore[operator]
    for name in ("checksum", "tensors", "format", "version"):
        del header[name]
    file_format.write(path, header, tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda told, tensors: told.update(size=3),
        lambda told, tensors: told.update(factor=1.0),
        lambda told, tensors: told.update(spacing=-1.0),
        lambda told, tensors: told.update(nets=7),
        lambda told, tensors: told["nets"][0].update(vectors=9),
        lambda told, tensors: told["nets"][0].update(level=0.0),
        lambda told, tensors: told["nets"][0].update(growth=1.0),
        lambda told, tensors: told["moments"].update(count="many"),
        lambda told, tensors: tensors.pop("stream_reach"),
        lambda told, tensors: tensors["stream_reach"].fill_(-1.0),
        lambda told, tensors: tensors["stream_nets"].fill_(float("nan")),
        lambda told, tensors: tensors["stream_net_rows"].fill_(10**6),
        lambda told, tensors: tensors["stream_note"].fill_(34),
    ],
)
def test_an_altered_file_is_refused(saved: Path, change: object) -> None:
    assert StreamingBank.load(saved).rows_seen == 3000
    altered(saved, change)
    with pytest.raises(FormatError, match=r"bank\.safetensors: altered, "):
        StreamingBank.load(saved)


def test_a_file_that_is_no_bank_is_refused(tmp_path: Path) -> None:
    save_file({"vectors": torch.rand(3, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="foreign"):
        StreamingBank.load(tmp_path / "x.safetensors")


def test_a_row_that_is_too_long_is_named_by_its_number() -> None:
    stream = StreamingBank(4)
    stream.update(torch.rand(50, 8))
    rows = torch.rand(400_000, 8) * 0.01
    rows[333_333] = 1e30
    with pytest.raises(InputError, match=r"^features: row 333333 has a norm above 1e18"):
        stream.update(rows)
    with pytest.raises(InputError, match=r"^features: row 0 has a norm above 1e18"):
        StreamingBank(4).update(rows[333_333:])
