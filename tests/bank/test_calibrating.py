"""Banks that know the scores of normal images: by held-out ones, by folds, and what is judged by them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mmad_bank import MemoryBank, MultiBank
from mmad_bank.bank import BankCalibration, Scores, dump_scores, file_format, open_dump
from mmad_bank.bank.selection import SelectHere
from mmad_bank.errors import FormatError, InputError

SHAPE = (9, 6)  # patches and dimensions
FORMATS = Path(__file__).parents[1] / "formats"


def images(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def built() -> MemoryBank:
    return MemoryBank.build(images(20, 0), ratio=0.3)


@pytest.fixture
def bank(built: MemoryBank) -> MemoryBank:
    return copy.copy(built)


def same(one: BankCalibration | None, other: BankCalibration | None) -> bool:
    assert one is not None
    assert other is not None
    tensors = zip(one.tensors().items(), other.tensors().items(), strict=True)
    return one.header() == other.header() and all(a == b and torch.equal(x, y) for (a, x), (b, y) in tensors)


@pytest.mark.parametrize("rule", [{}, {"reweight": "max"}, {"reweight": "patchcore", "n_neighbors": 4}])
def test_held_out_scores_are_the_banks(bank: MemoryBank, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_scores, "ROWS_AT_ONCE", 4 * SHAPE[0])  # blocks that do not divide the images
    held_out = images(30, 1)
    found, expected = bank.calibrate(held_out, **rule), bank.score(held_out, **rule)
    assert found is bank.calibration
    assert torch.equal(found.images.scores, expected.image.double().sort().values)
    assert torch.equal(found.peaks.scores, expected.patch.double().amax(1).sort().values)
    assert (found.rule, found.patches, found.origin) == (expected.rule, 9, "held-out images")
    for share, score in found.patch_quantiles.items():
        above = float((expected.patch > score).double().mean())
        assert above <= share < above + 1.5 / expected.patch.numel(), "the smallest score that does"
    assert list(found.patch_quantiles) == [0.1, 0.05, 0.01, 0.005], "270 patches say nothing of 0.1 % of them"


def test_rows_need_their_number_of_patches(bank: MemoryBank) -> None:
    held_out = images(30, 1)
    assert same(bank.calibrate(held_out.view(-1, 6), patches=9), bank.calibrate(held_out))
    assert bank.calibrate(held_out.view(-1, 6)).patches == 270, "an array is one image"
    with pytest.raises(InputError, match=r"^features: expected a multiple of 7 rows"):
        bank.calibrate(held_out.view(-1, 6), patches=7)


def test_whoever_selects_is_for_folds_only() -> None:
    bank = MemoryBank.build(images(5, 0))
    with pytest.raises(InputError, match=r"^selector: expected folds beside it, found none"):
        bank.calibrate(images(5, 1), selector=SelectHere(None))


def test_verdicts_follow_the_calibration(bank: MemoryBank) -> None:
    calibration = bank.calibrate(images(99, 1))
    scores = bank.score(torch.cat([images(40, 2), 3 * images(10, 3)]))
    for rate in (0.01, 0.05, 0.3):
        found = bank.judge(scores, rate)
        assert torch.equal(found.p_values, calibration.images.p_values(scores.image))
        assert torch.equal(found.bad, found.p_values <= rate * (1 + 1e-12))
        assert found.threshold == calibration.images.threshold(rate)
        assert found.bad_patches.any(1).tolist() == (calibration.peaks.p_values(scores.patch.amax(1)) <= rate).tolist()
        assert found.bad[40:].all()
    assert bank.judge(scores).threshold.rate == 0.01
    assert bank.judge(scores, 0.001).threshold.extrapolated


def alarms(by_folds: bool, rate: float, rounds: int) -> tuple[int, int]:
    """Count verdicts on new normal images over many small banks, each with a calibration of its own."""
    bad = total = 0
    for seed in range(rounds):
        train = images(20, 10_000 + seed)
        bank = MemoryBank.build(train, ratio=0.2)
        bank.calibrate(train, folds=5) if by_folds else bank.calibrate(images(19, 20_000 + seed))
        found = bank.judge(bank.score(images(20, 30_000 + seed)), rate).bad
        bad, total = bad + int(found.sum()), total + len(found)
    return bad, total


def test_the_promised_rate_is_kept() -> None:
    """Held-out images promise the rate; over calibrations it is neither above nor far below."""
    rate, rounds = 0.1, 150
    bad, total = alarms(False, rate, rounds)
    # The rate of one calibration of 19 images has a Beta(2, 18) distribution; verdicts of one share it.
    spread = (rate * (1 - rate) / 21 / rounds + rate * (1 - rate) / total) ** 0.5
    assert abs(bad / total - rate) < 4 * spread


def test_folds_are_not_too_strict() -> None:
    bad, total = alarms(True, 0.1, 100)
    assert bad / total < 0.1 + 4 * (0.09 / 22 / 100 + 0.09 / total) ** 0.5


@pytest.mark.parametrize(
    "settings", [{}, {"projection_dim": 4, "seed": 3}, {"standardize": True}, {"bank_precision": "int8"}]
)
def test_a_fold_is_scored_by_a_bank_of_the_others(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Also where folds end within a file, and the bank's settings are not the defaults."""
    train = images(11, 5)
    for name, part in (("a", train[:2]), ("b", train[2:3, :, :]), ("c", train[3:])):
        np.save(tmp_path / f"{name}.npy", part.numpy())
    bank = MemoryBank.build(tmp_path, ratio=0.3, **settings)
    seen: list[tuple[str, int, int]] = []
    found = bank.calibrate(tmp_path, folds=3, progress=lambda *words: seen.append(words))
    scores = []
    for first, last in ((0, 3), (3, 7), (7, 11)):
        rest = torch.cat([train[:first], train[last:]])
        fixed = settings | ({"standardize": bank.standardization} if "standardize" in settings else {})
        other = MemoryBank.build(rest, size=len(bank) * len(rest) // 11, **fixed)
        scores.append(other.score(train[first:last]).image)
    assert torch.equal(found.images.scores, torch.cat(scores).double().sort().values)
    assert found.origin == "images of the bank, in 3 folds"
    assert seen == [("Scoring normal images", done, 11) for done in (3, 7, 11)]


def test_equal_images_are_in_one_fold(tmp_path: Path) -> None:
    """A, B, C, D, E, A, D, F in 3 folds: A, B, A and C, D, D and E, F; also where files end within a fold."""
    train = images(8, 5)
    train[5], train[6] = train[0], train[3]
    for name, part in (("a", train[:4]), ("b", train[4:6]), ("c", train[6:])):
        np.save(tmp_path / f"{name}.npy", part.numpy())
    bank = MemoryBank.build(tmp_path, ratio=0.3)
    found = bank.calibrate(tmp_path, folds=3)
    scores = []
    for own in ([0, 1, 5], [2, 3, 6], [4, 7]):
        rest = train[[i for i in range(8) if i not in own]]
        scores.append(MemoryBank.build(rest, size=len(bank) * len(rest) // 8).score(train[own]).image)
    assert torch.equal(found.images.scores, torch.cat(scores).double().sort().values)
    equal = images(1, 3).expand(4, -1, -1).contiguous()
    with pytest.raises(InputError) as error:
        MemoryBank.build(equal).calibrate(equal, folds=2)
    assert str(error.value) == "folds: expected at least 2 different images, found 4 equal ones"


def test_folds_take_the_banks_features_only(bank: MemoryBank) -> None:
    for features, words in ((images(20, 1), "others"), (images(19, 0), "171 rows"), (images(20, 0).flip(0), "others")):
        with pytest.raises(InputError, match=rf"^folds: expected the features .*all 180 rows.* found {words}$"):
            bank.calibrate(features, folds=5)
    for folds in (1, 21, 0, -1, 2.5, True):
        with pytest.raises(InputError, match=r"^folds: expected "):
            bank.calibrate(images(20, 0), folds=folds)
    assert bank.calibration is None


def test_folds_of_an_extended_bank_take_all_it_was_made_of(bank: MemoryBank) -> None:
    more = 3 * images(4, 7)
    assert bank.extend(more) > 0
    with pytest.raises(InputError, match=r"^folds: expected the features"):
        bank.calibrate(images(20, 0), folds=4)
    assert len(bank.calibrate(torch.cat([images(20, 0), more]), folds=4).images) == 24


def test_its_own_images_are_not_held_out(tmp_path: Path) -> None:
    """Neither as the same file, nor copied, nor among others, nor in another order."""
    train = images(20, 0)
    np.save(tmp_path / "train.npy", train.numpy())
    np.save(tmp_path / "copy.npy", train.numpy())
    bank = MemoryBank.build(tmp_path / "train.npy", ratio=0.3)
    for features in (
        tmp_path / "train.npy", tmp_path / "copy.npy", train.flip(0), torch.cat([images(9, 1), train[4:12]]),
        [tmp_path / "copy.npy", tmp_path / "train.npy"],
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"^features: expected images that the bank was not built from.*folds="):
            bank.calibrate(features)
    assert bank.calibration is None


def test_images_of_one_background_are_held_out() -> None:
    """Patches that all images share, each at its place, are no sign of an image of the bank."""

    def pictures(n: int, seed: int) -> torch.Tensor:
        made = images(n, seed)
        made[:, [0, 2, 6, 8]] = torch.arange(24.0).view(4, 6)
        return made

    bank = MemoryBank.build(pictures(20, 0), ratio=0.3)
    assert sum(origin.patch in (0, 2, 6, 8) and origin.image == 0 for origin in bank.provenance()) >= 3
    assert len(bank.calibrate(pictures(30, 1)).images) == 30


def test_what_does_not_fit_is_refused(bank: MemoryBank) -> None:
    scores = bank.score(images(2, 3))
    with pytest.raises(InputError, match=r"^scores: expected a bank that is calibrated, found none"):
        bank.judge(scores)
    bank.calibrate(images(99, 1))
    with pytest.raises(InputError, match=r"^scores: expected what MemoryBank.score returns, found Tensor"):
        bank.judge(scores.image)  # type: ignore[arg-type]
    for other in (
        bank.score(images(2, 3), reweight="max"),
        bank.score(images(2, 3), n_neighbors=4),
        bank.score(images(2, 3), divisor=10),
    ):
        with pytest.raises(InputError, match=r"^scores: expected image scores by reweight='m3dm', n_neighbors=3, as"):
            bank.judge(other)
    with pytest.raises(InputError, match=r"^scores: expected images of 9 patches"):
        bank.judge(bank.score(images(2, 3)[:, :5]))
    with pytest.raises(InputError, match=r"^false_alarm_rate: "):
        bank.judge(scores, 1.5)
    assert torch.equal(bank.judge(Scores(*scores)).p_values, bank.judge(scores).p_values), "a rule that is not known"
    with pytest.raises(InputError, match=r"^reweight: "):
        bank.calibrate(images(9, 1), reweight="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected vectors of length 6"):
        bank.calibrate(torch.rand(9, 9, 5))


def test_divided_scores_are_judged_by_such_a_calibration(bank: MemoryBank) -> None:
    held_out = images(30, 1)
    found = bank.calibrate(held_out, divisor=3)
    assert torch.equal(found.images.scores, bank.score(held_out, divisor=3).image.double().sort().values)
    assert bank.judge(bank.score(images(2, 3), divisor=3)).threshold == found.images.threshold()
    with pytest.raises(InputError) as error:
        bank.judge(bank.score(images(2, 3)))
    assert str(error.value) == (
        "scores: expected image scores by reweight='m3dm', n_neighbors=3, divisor=3, as the calibration has, found"
        " reweight='m3dm', n_neighbors=3; call score with reweight='m3dm', n_neighbors=3, divisor=3, or calibrate anew"
        " with reweight='m3dm', n_neighbors=3, divisor=1"
    )
    assert bank.calibrate_again(images(40, 2)).rule.divisor == 3
    for wrong in (0, -1, float("inf"), True):
        with pytest.raises(InputError, match=r"^divisor: expected a finite number above 0"):
            bank.calibrate(held_out, divisor=wrong)


def test_a_bad_file_is_left_out_where_that_is_asked_for(tmp_path: Path, bank: MemoryBank) -> None:
    held_out = images(12, 1).numpy()
    np.save(tmp_path / "a.npy", held_out[:5])
    np.save(tmp_path / "c.npy", held_out[5:])
    broken = images(3, 2).numpy()
    broken[1, 2, 3] = np.nan
    np.save(tmp_path / "b.npy", broken)
    (tmp_path / "d.npy").write_text("no array")
    with pytest.raises(InputError, match=r"d\.npy"):
        bank.calibrate(tmp_path)
    left_out: dict[str, str] = {}
    found = bank.calibrate(tmp_path, left_out=left_out)
    assert sorted(Path(name).name for name in left_out) == ["b.npy", "d.npy"]
    assert same(found, bank.calibrate(torch.from_numpy(held_out)))
    (tmp_path / "d.npy").unlink()
    with pytest.raises(InputError, match=r"b\.npy: image 1, patch 2 holds NaN"):
        bank.calibrate(tmp_path)


def test_an_extension_makes_it_old(bank: MemoryBank) -> None:
    calibration = bank.calibrate(images(99, 1))
    assert not calibration.outdated
    assert bank.extend(images(2, 0)[:, :1], radius=100.0) == 0
    assert bank.calibration is calibration, "nothing was added"
    other = copy.copy(bank)
    assert bank.extend(images(3, 9) + 9) > 0
    assert bank.calibration is not None
    assert bank.calibration.outdated
    assert other.calibration is calibration
    assert "before the bank was extended" in repr(bank.calibration)
    assert not bank.calibrate(images(99, 1)).outdated


def test_patches_and_largest_scores_fall_when_a_bank_grows(bank: MemoryBank) -> None:
    """What "outdated" says of a calibration: nothing is called bad more often."""
    new = images(200, 4)
    calibration = bank.calibrate(images(99, 1), reweight="max")
    before = bank.judge(bank.score(new, reweight="max"), 0.1)
    assert bank.extend(images(20, 8), radius=1.0) > 0
    after = bank.judge(bank.score(new, reweight="max"), 0.1)
    assert after.threshold == before.threshold == calibration.images.threshold(0.1)
    assert bool((after.p_values >= before.p_values).all())
    assert int(after.bad_patches.sum()) <= int(before.bad_patches.sum())


def test_copies_and_files_keep_it(tmp_path: Path, bank: MemoryBank) -> None:
    calibration = bank.calibrate(images(30, 1), reweight="patchcore", origin="pictures of Monday")
    bank.save(tmp_path / "a.bank")
    MultiBank({"rgb": bank}).save(tmp_path / "banks")
    twins = [
        copy.copy(bank), copy.deepcopy(bank), pickle.loads(pickle.dumps(bank)), bank.to("cpu"),
        bank.with_precision("int8"), MemoryBank.load(tmp_path / "a.bank"),
        MemoryBank.load(tmp_path / "a.bank", mapped=True), MultiBank.load(tmp_path / "banks")["rgb"],
    ]  # fmt: skip
    for twin in twins:
        assert same(twin.calibration, calibration)
    bank.extend(images(3, 9) + 9)
    bank.save(tmp_path / "b.bank")
    assert same(MemoryBank.load(tmp_path / "b.bank").calibration, bank.calibration)
    assert MemoryBank.load(tmp_path / "b.bank").calibration is not None


def test_a_pickle_from_before_has_none(bank: MemoryBank) -> None:
    state = bank.__getstate__()
    del state["calibration"]
    old = MemoryBank.__new__(MemoryBank)
    old.__setstate__(state)
    assert old.calibration is None
    assert copy.copy(old).calibration is None


@pytest.mark.parametrize("path", sorted(FORMATS.glob("*/plain.safetensors")), ids=lambda path: path.parent.name)
def test_a_bank_of_an_earlier_version_has_none_and_takes_one(tmp_path: Path, path: Path) -> None:
    bank = MemoryBank.load(path)
    assert bank.calibration is None
    bank.calibrate(torch.rand(5, 7, bank.dim))
    bank.save(tmp_path / "a.bank")
    assert same(MemoryBank.load(tmp_path / "a.bank").calibration, bank.calibration)


def test_a_file_without_one_is_as_it_was(tmp_path: Path, bank: MemoryBank) -> None:
    bank.save(tmp_path / "a.bank")
    with safe_open(tmp_path / "a.bank", "pt") as file:
        assert set(file.keys()) == {"vectors", "source_rows"}
        assert "calibration" not in json.loads(file.metadata()["mmad_bank"])


@pytest.mark.parametrize(
    "change",
    [
        {"images": 29}, {"images": 0}, {"reweight": "mean"}, {"n_neighbors": 1}, {"divisor": 0}, {"patches": "many"},
        {"origin": None}, {"outdated": 1}, {"patch_quantiles": [{"share": 0.1}]}, {"patch_quantiles": {}},
    ],
)  # fmt: skip
def test_damaged_headers_are_refused(tmp_path: Path, bank: MemoryBank, change: dict[str, Any]) -> None:
    calibration = bank.calibrate(images(30, 1))
    header = bank.metadata()
    header["calibration"] |= change
    tensors = {"vectors": bank.vectors, "source_rows": bank.source_rows, **calibration.tensors()}
    file_format.write(tmp_path / "a.bank", header, tensors)
    with pytest.raises(FormatError, match=r"a\.bank: altered"):
        MemoryBank.load(tmp_path / "a.bank")


@pytest.mark.parametrize("where", ["patch", "image"])
def test_what_is_no_number_is_not_called_good(where: str) -> None:
    bank = MemoryBank.build(torch.rand(4, 9, 5, generator=torch.Generator().manual_seed(0)), ratio=0.5)
    bank.calibrate(torch.rand(20, 9, 5, generator=torch.Generator().manual_seed(1)))
    scores = bank.score(torch.rand(2, 9, 5))
    getattr(scores, where)[1] = torch.nan
    with pytest.raises(InputError, match=f"^scores: expected numbers, found NaN in {where}$"):
        bank.judge(scores)


@pytest.mark.parametrize("wrong", [None, torch.ones(30), torch.full((30,), torch.nan).double(), torch.ones(0).double()])
def test_damaged_tensors_are_refused(tmp_path: Path, bank: MemoryBank, wrong: torch.Tensor | None) -> None:
    calibration = bank.calibrate(images(30, 1))
    tensors = {"vectors": bank.vectors, "source_rows": bank.source_rows, **calibration.tensors()}
    del tensors["calibration_peaks"]
    tensors |= {} if wrong is None else {"calibration_peaks": wrong}
    file_format.write(tmp_path / "a.bank", bank.metadata(), tensors)
    with pytest.raises(FormatError, match=r"a\.bank: altered"):
        MemoryBank.load(tmp_path / "a.bank")


def test_features_of_another_extractor_are_refused(tmp_path: Path) -> None:
    for name, extractor, seed in (("train", "this", 0), ("other", "that", 1)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", images(6, seed).numpy())
        (tmp_path / name / "extraction.json").write_text(json.dumps({"extractor": extractor}))
    bank = MemoryBank.build(tmp_path / "train")
    with pytest.raises(InputError, match=r"expected features of the extractor 'this'"):
        bank.calibrate(open_dump(tmp_path / "other"))


def test_extend_calibrates_anew(bank: MemoryBank, tmp_path: Path) -> None:
    """By the same rule, of the extended bank; what is refused is refused before anything is added."""
    first = bank.calibrate(images(99, 1), reweight="patchcore", n_neighbors=4)
    more, other = 2 * images(10, 6), images(50, 7)
    np.save(tmp_path / "more.npy", more.numpy())
    with pytest.raises(InputError, match=r"^calibration: expected images that the bank was not built from.*more\.npy"):
        bank.extend(tmp_path / "more.npy", calibration=tmp_path / "more.npy")
    with pytest.raises(InputError, match="length 6 as in the bank, found 5"):
        bank.extend(more, calibration=torch.rand(3, 9, 5))
    assert bank.calibration is first
    assert bank.extend(more, calibration=other) > 0
    found = bank.calibration
    assert found is not None
    assert not found.outdated
    assert found.rule == first.rule
    expected = bank.score(other, reweight="patchcore", n_neighbors=4).image.double().sort().values
    assert torch.equal(found.images.scores, expected)
    assert same(bank.calibrate_again(other.view(-1, 6)), found), "rows are cut as before"
    with pytest.raises(InputError, match="of its own among 10"):
        bank.calibrate_again(more)


def test_extend_calibrates_a_bank_that_was_not(bank: MemoryBank) -> None:
    bank.extend(2 * images(10, 6), calibration=images(50, 7))
    assert bank.calibration is not None
    assert bank.calibration.rule == bank.score(images(1, 0)).rule


@pytest.mark.parametrize("index", ["Flat", "IVF2,Flat"])
def test_banks_with_a_faiss_index(tmp_path: Path, index: str) -> None:
    """Folds are searched as the bank is."""
    pytest.importorskip("faiss")
    train = images(20, 0)
    bank = MemoryBank.build(train, ratio=0.3, index=index, nprobe=1 if "IVF" in index else None)
    held_out = bank.calibrate(images(30, 1))
    assert torch.equal(held_out.images.scores, bank.score(images(30, 1)).image.double().sort().values)
    folds = bank.calibrate(train, folds=4)
    scores = []
    for fold in range(4):
        rest = torch.cat([train[: 5 * fold], train[5 * fold + 5 :]])
        other = MemoryBank.build(rest, size=len(bank) * 15 // 20, index=index, nprobe=1 if "IVF" in index else None)
        scores.append(other.score(train[5 * fold : 5 * fold + 5]).image)
    assert torch.equal(folds.images.scores, torch.cat(scores).double().sort().values)
    bank.save(tmp_path / "a.bank")
    assert same(MemoryBank.load(tmp_path / "a.bank", trust_index=True).calibration, folds)


def test_an_extension_meanwhile_is_noticed(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank that another thread extends while it is calibrated was scored as it was, and says so."""
    score, others = MemoryBank.score, images(3, 9) + 9

    def extending(self: MemoryBank, *arguments: Any, **settings: Any) -> Scores:
        monkeypatch.setattr(MemoryBank, "score", score)
        assert bank.extend(others) > 0
        return score(self, *arguments, **settings)

    expected = bank.score(images(30, 1)).image.double().sort().values
    monkeypatch.setattr(MemoryBank, "score", extending)
    found = bank.calibrate(images(30, 1))
    assert torch.equal(found.images.scores, expected)
    assert found.outdated
