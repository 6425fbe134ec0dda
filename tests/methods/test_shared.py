"""One training for several categories: on which features, by whose hand, and what models say of it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_parts import RGB, a_part
from torch import nn

from mmad_bank import methods
from mmad_bank._internal.training import sample_order
from mmad_bank.adaptation import FeatureAdaptation, train_adaptation
from mmad_bank.adaptation.training import Training
from mmad_bank.data import Sample
from mmad_bank.errors import FormatError, InputError, NoneUsableError
from mmad_bank.extraction import Extractors
from mmad_bank.fusion import train_fusion, training
from mmad_bank.methods import LSFA, M3DM, PatchCore
from mmad_bank.methods.base import Method
from mmad_bank.methods.shared import TrainedOn, fit_categories, read_trained_on, train_shared

pytest.importorskip("timm")
pytest.importorskip("sklearn")
pytest.importorskip("open3d")

POINTS: dict[str, Any] = {**RGB, "xyz": "fpfh"}
UFF: dict[str, Any] = {**POINTS, "uff_steps": 4, "uff_batch": 3, "uff_patches": 16}
ADAPTED: dict[str, Any] = {"adaptation_steps": 4, "adaptation_batch": 3}
LSFA_SMALL: dict[str, Any] = {**POINTS, **ADAPTED, "queue_size": 100}

FEATURES = "fpfh normals 0.1/30 features 0.25/100 + efficientnet_lite0 stages 1 mean 3"


def some(category: str, n: int, first: int) -> list[Sample]:
    return [a_part(seed, f"{category}/train/good/{seed:03d}") for seed in range(first, first + n)]


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Sample]]:
    """Two categories, not of one size."""
    return {"bagel": some("bagel", 3, 0), "rope": some("rope", 2, 10)}


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each sample has been described by extractors."""
    times: Counter[str] = Counter()
    describe = Extractors.__call__

    def noting(self: Extractors, samples: Any) -> Any:
        times.update(sample.id for sample in samples)
        return describe(self, samples)

    monkeypatch.setattr(Extractors, "__call__", noting)
    return times


def pairs_of(method: Any, parts: dict[str, list[Sample]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The features of all categories' images, one category after the other."""
    features = [method.extractors_(samples) for samples in parts.values()]
    return [pair for one in features for pair in zip(one["xyz"], one["rgb"], strict=True)]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_categories_share_the_fusion_that_their_images_together_train(
    parts: dict[str, list[Sample]], described: Counter[str]
) -> None:
    fitted = dict(fit_categories(M3DM(**UFF), parts))
    assert list(fitted) == ["bagel", "rope"]
    assert set(described.values()) == {1}, "for the fusion and the category's own fit they are extracted once"
    bagel, rope = fitted.values()
    by_hand = train_fusion(pairs_of(bagel, parts), steps=4, warmup=1, batch=3, patches_per_image=16)
    assert same(bagel.uff_, by_hand)
    assert same(rope.uff_, by_hand)
    assert bagel.trained_on_ == rope.trained_on_ == {"uff": TrainedOn(5, ("bagel", "rope"), FEATURES)}
    assert (bagel.categories_, rope.categories_) == (["bagel"], ["rope"])
    assert bagel.train_ids_ == [sample.id for sample in parts["bagel"]]
    alone = M3DM(**UFF).fit(parts["bagel"])
    assert not same(alone.uff_, by_hand)
    assert alone.trained_on_ == {"uff": TrainedOn(3, ("bagel",), FEATURES)}


def test_categories_share_adaptors_with_queues_of_their_own(parts: dict[str, list[Sample]]) -> None:
    fitted = dict(fit_categories(LSFA(**LSFA_SMALL), parts))
    bagel, rope = fitted.values()
    options: dict[str, Any] = {"steps": 4, "batch": 3, "queue_size": 100}
    by_hand = train_adaptation(pairs_of(bagel, parts), groups=[0, 0, 0, 1, 1], **options)
    assert same(bagel.adaptation_, by_hand)
    assert same(rope.adaptation_, by_hand)
    assert not same(by_hand, train_adaptation(pairs_of(bagel, parts), **options))
    assert rope.trained_on_ == {"adaptation": TrainedOn(5, ("bagel", "rope"), FEATURES)}


def test_a_shared_fusion_is_trained_on_features_of_the_shared_adaptors(parts: dict[str, list[Sample]]) -> None:
    bagel = dict(fit_categories(M3DM(**UFF, **ADAPTED, adaptation="train"), parts))["bagel"]
    adapted = []
    for xyz, rgb in pairs_of(bagel, parts):
        one = bagel.adaptation_.adapt({"xyz": xyz[None], "rgb": rgb[None]})
        adapted.append((one["xyz"][0], one["rgb"][0]))
    by_hand = train_fusion(adapted, steps=4, warmup=1, batch=3, patches_per_image=16)
    for one, other in zip(bagel.uff_.state_dict().values(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    both = {"adaptation": FEATURES, "uff": f"{FEATURES} adapted"}
    assert {name: one.features for name, one in bagel.trained_on_.items()} == both


def test_a_step_takes_images_of_all_categories(parts: dict[str, list[Sample]]) -> None:
    """The order of a training goes through all images, however many a category has."""
    categories = [category for category, n in {"bagel": 244, "rope": 298, "peach": 210}.items() for _ in range(n)]
    for step in range(5):
        drawn = Counter(categories[image] for image in sample_order(len(categories), step * 256, 256, seed=step))
        for category, n in drawn.items():
            assert n == pytest.approx(256 * categories.count(category) / len(categories), abs=35)
        assert len(drawn) == 3


class Killed(Exception):
    pass


def dying(losses: Any, at: int) -> Any:
    def die_later(self: Any, step: int) -> Any:
        if step == at:
            raise Killed
        return losses(self, step)

    return die_later


@pytest.mark.parametrize(
    ("make", "trained", "state"),
    [
        (lambda: M3DM(**{**UFF, "uff_steps": 60, "uff_batch": 1}), training._Training, "uff.pt"),
        pytest.param(
            lambda: LSFA(**{**LSFA_SMALL, "adaptation_steps": 60, "adaptation_batch": 1}),
            Training,
            "adaptation.pt",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["m3dm", "lsfa"],
)
def test_a_shared_training_that_was_killed_goes_on(
    make: Any, trained: Any, state: str, parts: dict[str, list[Sample]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, described: Counter[str],
) -> None:  # fmt: skip
    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr(trained, "losses", dying(trained.losses, 55))
        with pytest.raises(Killed):
            train_shared(make(), parts, workdir=work)
    assert torch.load(work / ".shared" / state, weights_only=True)["step"] == 50
    taken: list[int] = []
    losses = trained.losses

    def noting(self: Any, step: int) -> Any:
        taken.append(step)
        return losses(self, step)

    monkeypatch.setattr(trained, "losses", noting)
    shared = train_shared(make(), parts, workdir=work)
    assert taken == list(range(50, 60))
    assert set(described.values()) == {1}
    again = train_shared(make(), parts, workdir=work)
    assert again.files == shared.files
    assert len(taken) == 10, "it is there"
    taken.clear()
    whole = train_shared(make(), parts, workdir=tmp_path / "whole")
    for one, other in zip(shared.files.values(), whole.files.values(), strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_another_job_in_the_same_folder_takes_nothing_over(parts: dict[str, list[Sample]], tmp_path: Path) -> None:
    first = train_shared(M3DM(**UFF), parts, workdir=tmp_path)
    before = Path(first.files["uff_weights"]).read_bytes()
    fewer = {"bagel": parts["bagel"], "rope": parts["rope"][:1]}
    for method, data in ((M3DM(**UFF), fewer), (M3DM(**{**UFF, "uff_lr": 0.1}), parts)):
        other = train_shared(method, data, workdir=tmp_path)
        assert other.identity != first.identity
        assert Path(other.files["uff_weights"]).read_bytes() != before


def test_a_saved_model_says_what_its_parts_were_trained_on(parts: dict[str, list[Sample]], tmp_path: Path) -> None:
    shared = train_shared(M3DM(**UFF), parts, workdir=tmp_path / "work")
    file = tmp_path / "uff.safetensors"
    file.write_bytes(Path(shared.files["uff_weights"]).read_bytes())
    model = M3DM(**{**UFF, "uff_weights": str(file)}).fit(parts["rope"])
    model.save(tmp_path / "model")
    loaded = methods.load(tmp_path / "model")
    assert loaded.trained_on_ == {"uff": TrainedOn(5, ("bagel", "rope"), FEATURES)}
    assert loaded.predict(a_part(90)).score == model.predict(a_part(90)).score
    model.uff_.save(tmp_path / "published.pth")
    unknown = M3DM(**{**UFF, "uff_weights": str(tmp_path / "published.pth")}).fit(parts["rope"])
    assert unknown.trained_on_ == {}, "a file that does not say"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"uff.safetensors: not a safetensors file, or a truncated one"):
        read_trained_on(file)


def test_a_fusion_of_other_features_is_taken_with_a_warning(parts: dict[str, list[Sample]], tmp_path: Path) -> None:
    shared = train_shared(M3DM(**UFF), parts, workdir=tmp_path)
    file = tmp_path / "uff.safetensors"
    file.write_bytes(Path(shared.files["uff_weights"]).read_bytes())
    FeatureAdaptation(33, 24, layer="residual").save(tmp_path / "pair.safetensors")
    adapted = M3DM(**UFF, uff_weights=str(file), adaptation=str(tmp_path / "pair.safetensors"))
    words = f"uff_weights: trained on features of {FEATURES}; found those of {FEATURES} adapted ({file})"
    with pytest.warns(UserWarning, match=f"^{re.escape(words)}$"):
        adapted.fit(parts["rope"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        M3DM(**{**UFF, "grid": (4, 4)}, uff_weights=str(file)).fit(parts["rope"])


@pytest.mark.parametrize(("file", "told"), [("uff.safetensors", "a truncated one"), ("skipped.json", "altered")])
def test_a_damaged_part_in_the_work_folder_is_trained_anew(
    file: str, told: str, parts: dict[str, list[Sample]], tmp_path: Path
) -> None:
    first = train_shared(M3DM(**UFF), parts, workdir=tmp_path)
    whole, kept = Path(first.files["uff_weights"]).read_bytes(), tmp_path / ".shared" / file
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"{file}: .*{told}.*; what categories share is trained anew"):
        again = train_shared(M3DM(**UFF), parts, workdir=tmp_path)
    assert again == first
    assert Path(again.files["uff_weights"]).read_bytes() == whole


@pytest.mark.parametrize(("method", "argument"), [(UFF, "uff_weights"), (LSFA_SMALL, "adaptation")])
def test_a_part_that_is_not_there_is_refused_before_the_features(
    method: dict[str, Any], argument: str, parts: dict[str, list[Sample]], tmp_path: Path
) -> None:
    cls = M3DM if argument == "uff_weights" else LSFA
    for source, found in ((tmp_path / "none.pth", "no such file"), (tmp_path, "a folder")):
        model = cls(**{**method, argument: str(source)})
        with pytest.raises(InputError, match=f"^{argument}: expected a file of weights, found {found} "):
            model.fit(next(iter(parts.values())), workdir=tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("method", "argument"), [(UFF, "uff_weights"), (LSFA_SMALL, "adaptation")])
def test_a_part_for_features_of_other_lengths_is_refused_in_one_line(
    method: dict[str, Any], argument: str, parts: dict[str, list[Sample]], tmp_path: Path
) -> None:
    cls = M3DM if argument == "uff_weights" else LSFA
    (trained,) = train_shared(cls(**method), parts, workdir=tmp_path).files.values()
    given = Path(trained).rename(tmp_path / "part.safetensors")
    words = (
        f"{argument}: expected weights for xyz features of length 33 and rgb features of length 64, those of"
        f" {FEATURES.replace('stages 1', 'stages 1,2')}; found weights for xyz features of length 33 and rgb features"
        f" of length 24, trained on those of {FEATURES} ({given})"
    )
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        cls(**{**method, "rgb_layers": (1, 2)}, **{argument: str(given)}).fit(parts["rope"])


def test_readings_are_told_by_their_arguments(parts: dict[str, list[Sample]], tmp_path: Path) -> None:
    points = {**UFF, "xyz": "point_mae", "xyz_weights": "random", "num_groups": 16, "group_size": 8}
    trained = train_shared(M3DM(**points, recipe="paper"), parts, workdir=tmp_path).files["uff_weights"]
    given = Path(trained).rename(tmp_path / "uff.safetensors")
    told = (
        r"uff_weights: trained on features of point_mae 16x8 layers 3,7,11 batch_norm=running interpolation=all_centers"
        r" \+ .*; found those of point_mae 16x8 layers 3,7,11 batch_norm=batch interpolation=three_nearest \+ "
    )
    with pytest.warns(UserWarning, match=told):
        M3DM(**points, uff_weights=str(given)).fit(parts["rope"])


def test_a_category_without_usable_samples_takes_no_part(parts: dict[str, list[Sample]], tmp_path: Path) -> None:
    bad = [Sample(one.rgb * float("nan"), one.xyz, one.mask, id=f"bad/{one.id}", preparation=one.preparation)
           for one in parts["rope"]]  # fmt: skip
    shared = train_shared(M3DM(**UFF), {**parts, "bad": bad}, workdir=tmp_path)
    assert list(shared.skipped) == ["bad"]
    assert "dataset: no sample can be used" in shared.skipped["bad"]
    assert read_trained_on(shared.files["uff_weights"]) == TrainedOn(5, ("bagel", "rope"), FEATURES)
    with pytest.raises(NoneUsableError, match=r"datasets: no sample of any category can be used"):
        train_shared(M3DM(**UFF), {"bad": bad}, workdir=tmp_path)
    with pytest.raises(InputError, match=r"datasets: expected normal samples of one or more categories, found none"):
        train_shared(M3DM(**UFF), {}, workdir=tmp_path)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (M3DM(), ["uff"]),
        (M3DM(adaptation="train"), ["adaptation", "uff"]),
        (M3DM(uff_weights="random"), []),
        (M3DM(fusion="concat"), []),
        (M3DM(banks=("xyz", "rgb"), adaptation="train"), ["adaptation"]),
        (LSFA(), ["adaptation"]),
        (LSFA(adaptation="none"), []),
        (LSFA(finetune="blocks"), []),
        (PatchCore(), []),
    ],
)
def test_what_is_trained_can_be_shared(method: Method, names: list[str]) -> None:
    assert [part.name for part in method.parts_to_train()] == names
