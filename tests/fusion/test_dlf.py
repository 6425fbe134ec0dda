"""DLF: scikit-learn's SVMs applied in PyTorch, the direction of their scores, and the file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank.errors import FormatError, InputError, MissingExtraError
from mmad_bank.fusion import DecisionFusion
from mmad_bank.fusion.dlf import _oriented

linear_model = pytest.importorskip("sklearn.linear_model")
BANKS = ("xyz", "rgb", "fusion")


def normal_scores(n: int = 40, size: int = 12, seed: int = 0) -> tuple[dict, dict]:
    """Scores as banks give them: positive, of different sizes, rising together."""
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(0.8, 1.2, n)
    levels = zip(BANKS, (2, 30, 4), strict=True)
    images = {bank: level * difficulty * rng.uniform(0.9, 1.1, n) for bank, level in levels}
    shape = (n, size, size)
    return images, {bank: (scores[:, None, None] * rng.uniform(0.1, 1, shape)) for bank, scores in images.items()}


@pytest.mark.parametrize("learning_rate", [None, 1e-4])
def test_scores_are_scikit_learns(learning_rate: float | None) -> None:
    images, maps = normal_scores()
    fusion = DecisionFusion(learning_rate=learning_rate, seed=42).fit(images, maps)
    schedule = {} if learning_rate is None else {"learning_rate": "constant", "eta0": 1e-4}
    for scores, fused in ((images, fusion.fuse_images(images)), (maps, fusion.fuse_pixels(maps))):
        columns = [scores[bank].astype(np.float32) for bank in BANKS]
        rows = np.stack(columns, axis=-1).reshape(-1, 3).astype(np.float64) * [1.0, 0.1, 1.0]
        svm = linear_model.SGDOneClassSVM(nu=0.5, max_iter=1000, random_state=42, **schedule).fit(rows)
        assert fused.dtype == torch.float32
        assert fused.shape == scores["xyz"].shape
        assert np.allclose(fused.numpy().ravel(), svm.score_samples(rows), rtol=1e-5)


def test_larger_is_more_anomalous_in_every_bank() -> None:
    images, maps = normal_scores()
    fusion = DecisionFusion().fit(images, maps, held_out=normal_scores(10, seed=1))
    usual = {bank: torch.tensor([scores.mean()]) for bank, scores in images.items()}
    for bank in BANKS:
        for fuse in (fusion.fuse_images, fusion.fuse_pixels):
            assert fuse(usual | {bank: 2 * usual[bank]}) > fuse(usual)


def test_a_direction_that_falls_is_turned_round() -> None:
    table = torch.from_numpy(np.stack(list(normal_scores()[0].values()), axis=1))
    weights = torch.tensor([0.3, 0.01, 0.2], dtype=torch.float64)
    assert torch.equal(_oriented(weights, table), weights)
    assert torch.equal(_oriented(-weights, table), weights)
    assert torch.equal(_oriented(-weights, table[:1]), weights)  # nothing varies in one row: the sign decides


def test_held_out_data_decide_the_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    images, maps = normal_scores()
    weights = torch.tensor([1.0, -0.1, 0.1], dtype=torch.float64)
    monkeypatch.setattr(DecisionFusion, "_fit_one", lambda self, rows: (weights, 0.0))
    # In held-out data only rgb varies, and along the weights it falls.
    held_out = {"xyz": np.ones(9), "rgb": np.arange(9.0), "fusion": np.ones(9)}
    assert torch.equal(DecisionFusion().fit(images, maps).weights_["images"], weights)
    turned = DecisionFusion().fit(images, maps, held_out=(held_out, held_out))
    assert torch.equal(turned.weights_["images"], -weights)


def test_pixels_are_drawn_reproducibly() -> None:
    images, maps = normal_scores()
    few = [DecisionFusion(max_pixels=300, seed=seed).fit(images, maps).weights_["pixels"] for seed in (1, 1, 2)]
    assert torch.equal(few[0], few[1])
    assert not torch.equal(few[0], few[2])
    whole = DecisionFusion(seed=1).fit(images, maps).weights_["pixels"]
    assert torch.nn.functional.cosine_similarity(few[0], whole, dim=0) > 0.99
    drawn = DecisionFusion(max_pixels=300)._drawn(torch.arange(1000.0)[:, None].expand(-1, 3))
    assert len(drawn[:, 0].unique()) == 300


def test_two_banks_with_their_own_factors() -> None:
    images, maps = ({bank: scores[bank] for bank in ("rgb", "xyz")} for scores in normal_scores())
    fusion = DecisionFusion({"xyz": 1.0, "rgb": 0.1}).fit(images, maps)
    swapped = {"rgb": images["xyz"], "xyz": images["rgb"]}
    assert fusion.weights_["images"].shape == (2,)
    assert not torch.allclose(fusion.fuse_images(images), fusion.fuse_images(swapped))


def test_saved_fusion_comes_back(tmp_path: Path) -> None:
    images, maps = normal_scores()
    fusion = DecisionFusion(nu=0.4, seed=5, learning_rate=1e-3).fit(images, maps)
    fusion.save(tmp_path / "dlf.safetensors")
    loaded = DecisionFusion.load(tmp_path / "dlf.safetensors")
    assert vars(loaded).keys() == vars(fusion).keys()
    assert (loaded.nu, loaded.seed, loaded.learning_rate, loaded.factors) == (0.4, 5, 1e-3, fusion.factors)
    assert loaded.offsets_ == fusion.offsets_
    assert list(loaded.factors) == list(BANKS)
    assert torch.equal(loaded.fuse_images(images), fusion.fuse_images(images))
    assert torch.equal(loaded.fuse_pixels(maps), fusion.fuse_pixels(maps))


def test_other_and_damaged_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "bank.safetensors", metadata={"mmad_bank": '{"format": "mmad-bank"}'})
    images, maps = normal_scores()
    DecisionFusion().fit(images, maps).save(tmp_path / "dlf.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "dlf.safetensors").read_bytes()[:-9])
    for name in ("other", "bank", "cut"):
        with pytest.raises(FormatError, match=f"{name}.safetensors: not a saved decision fusion"):
            DecisionFusion.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        DecisionFusion.load(tmp_path / "none.safetensors")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*multimodal"):
        DecisionFusion().fit(*normal_scores())


def fit_with(**change) -> None:
    images, maps = normal_scores(4, 2)
    DecisionFusion().fit(images | change, maps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DecisionFusion({}), "factors"),
        (lambda: DecisionFusion({"xyz": -1.0}), "factors"),
        (lambda: DecisionFusion(nu=0), "nu"),
        (lambda: DecisionFusion(learning_rate=-1), "learning_rate"),
        (
            lambda: DecisionFusion(learning_rate=1e308).fit(*normal_scores(4, 2)),
            "learning_rate: DLF diverged.*1e\\+308",
        ),
        (lambda: DecisionFusion(max_iter=0), "max_iter"),
        (lambda: DecisionFusion().fuse_images({}), "not fitted"),
        (lambda: DecisionFusion().save("x.safetensors"), "not fitted"),
        (lambda: DecisionFusion().fit({"xyz": np.ones(3)}, {}), "images: expected .* of xyz, rgb, fusion, found xyz"),
        (lambda: fit_with(rgb=np.ones(3)), r"images\['rgb'\]: expected shape \(4,\)"),
        (lambda: fit_with(rgb=np.full(4, np.nan)), r"images\['rgb'\]: expected finite"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_few_held_out_images_whose_banks_disagree_do_not_turn_the_direction_round() -> None:
    """Over some images one bank may rise where the others fall; weights that are all positive stay as they are."""
    weights = torch.tensor([0.4, 0.2, 1.4], dtype=torch.float64)
    table = torch.tensor([[0.0, 0.0, 3.0], [2.0, 2.0, 2.0], [4.0, 4.0, 1.0]], dtype=torch.float64)
    assert torch.equal(_oriented(weights, table), weights)
    assert torch.equal(_oriented(-weights, table), weights)
