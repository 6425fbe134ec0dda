"""AST as a method: what its score is made of, each modality alone, what a kill leaves, and what a saved model holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

pytest.importorskip("timm")
ndimage = pytest.importorskip("scipy.ndimage")

from small_ast import SMALL
from small_parts import SIZE, a_part

from mmad_bank import methods
from mmad_bank._internal import training
from mmad_bank.data import Frame, Preprocessing, Sample
from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.exporting.networks import networks_of
from mmad_bank.methods import AST
from mmad_bank.methods.ast.depth import Depth
from mmad_bank.methods.ast.position import position_map

PARTS = [a_part(seed) for seed in range(4)]
TEST = a_part(30, "part/test/good/030")


@pytest.fixture(scope="module")
def fitted() -> AST:
    return AST(**SMALL).fit(PARTS)


@pytest.fixture(scope="module")
def alone() -> dict[str, AST]:
    """A model of each modality."""
    return {
        name: AST(**SMALL, inputs=(name,)).fit([seen_by(name, sample) for sample in PARTS]) for name in ("rgb", "xyz")
    }


def seen_by(modality: str, sample: Sample) -> Sample:
    return replace(sample, modalities=frozenset({modality}))


def states(method: AST) -> list[torch.Tensor]:
    return [*method.teacher_.state_dict().values(), *method.student_.state_dict().values()]


def own_scores(method: AST, sample: Sample) -> torch.Tensor:
    """The cells' scores of both modalities, put together from the networks."""
    rgb = method.extractors_.networks["rgb"](sample.rgb[None]).transpose(1, 2).unflatten(2, (8, 8))
    depth, foreground = Depth((8, 8)).maps(sample.xyz[None])
    x, condition = torch.cat([rgb, depth], dim=1), position_map(4, (8, 8))[None]
    with torch.no_grad():
        difference = method.teacher_(x, condition)[0] - method.student_(x, condition)
    return difference.square().mean(1)[0] * foreground[0]


def test_the_defaults_are_the_papers() -> None:
    method = AST()
    assert methods.method_class("ast") is AST
    assert (method.rgb, method.image_size, method.sigma) == ("tf_efficientnet_b5.aa_in1k", 768, 0.0)
    assert (method._cells, method.inputs) == ((24, 24), ("rgb", "xyz"))
    assert AST.preparation == "cfm"


def test_map_and_score_are_those_of_the_squared_differences(fitted: AST) -> None:
    scores, prediction = own_scores(fitted, TEST), fitted.predict(TEST)
    whole = F.interpolate(scores[None, None], size=(SIZE, SIZE), mode="bicubic", align_corners=False)[0, 0]
    torch.testing.assert_close(prediction.prepared_map, whole, rtol=1e-4, atol=1e-5 * float(whole.max()))
    assert prediction.score == prediction.prepared_map.max().item()
    (part,) = prediction.parts.values()
    assert torch.equal(part.map((SIZE, SIZE)), prediction.prepared_map)
    assert (part.scores > 0).sum() > 20
    mean = fitted.with_arguments(image_score="mean").predict(TEST)
    assert mean.score == pytest.approx(whole.mean().item(), rel=1e-4)
    blurred = fitted.with_arguments(sigma=2.0).predict(TEST).prepared_map
    expected = ndimage.gaussian_filter(whole.double().numpy(), 2.0)
    assert np.allclose(blurred, expected, rtol=1e-3, atol=1e-5 * float(whole.max()))


def test_the_background_says_nothing(fitted: AST) -> None:
    _, foreground = Depth((8, 8)).maps(TEST.xyz[None])
    scores = fitted.predict(TEST).parts["student"].scores
    assert torch.equal(scores > 0, foreground[0] > 0)
    assert (foreground == 0).any()
    everywhere = AST(**{**SMALL, "teacher_epochs": 1, "student_epochs": 1}, foreground=False).fit(PARTS[:2])
    assert (everywhere.predict(TEST).parts["student"].scores > 0).all()


def test_a_batch_is_predicted_as_its_samples_are(fitted: AST) -> None:
    samples = [a_part(seed) for seed in (30, 31)]
    for one, sample in zip(fitted.predict_batch(samples), samples, strict=True):
        torch.testing.assert_close(one.map, fitted.predict(sample).map, rtol=1e-3, atol=1e-5)


def test_a_saved_model_predicts_the_same(fitted: AST, alone: dict[str, AST], tmp_path: Path) -> None:
    for name, model in {"both": fitted, **alone}.items():
        model.save(tmp_path / name)
        loaded = methods.load(tmp_path / name)
        assert isinstance(loaded, AST)
        assert loaded.arguments() == model.arguments()
        sample = TEST if name == "both" else seen_by(name, TEST)
        first, second = model.predict(sample), loaded.predict(sample)
        assert first.score == second.score > 0
        assert torch.equal(first.map, second.map)
        assert loaded.nbytes == model.nbytes > 0
    files = {path.name for path in (tmp_path / "both").iterdir()}
    assert files == {"model.json", "extractor-rgb.safetensors", "student.safetensors", "teacher.safetensors"}


def test_products_may_be_of_bfloat16(fitted: AST, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = fitted.predict(TEST).parts["student"].scores
    monkeypatch.setattr(fitted, "compute_dtype", "bfloat16")
    rounded = fitted.predict(TEST).parts["student"].scores
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.max()


def test_pictures_alone_have_no_foreground_and_their_mean_is_the_score(alone: dict[str, AST]) -> None:
    prediction = alone["rgb"].predict(seen_by("rgb", TEST))
    assert alone["rgb"].modalities == {"rgb"}
    assert (prediction.parts["student"].scores > 0).all()
    assert prediction.score == pytest.approx(prediction.prepared_map.mean().item())
    with pytest.raises(InputError, match=r"expected pictures and point clouds for ast, .*, ast with inputs=rgb"):
        AST(**SMALL).fit([seen_by("rgb", sample) for sample in PARTS])


def test_depth_alone_has_no_network_of_pictures(alone: dict[str, AST]) -> None:
    assert list(alone["xyz"].extractors_.networks) == ["xyz"]
    assert alone["xyz"].teacher_.channels == 64
    assert alone["xyz"].idle_arguments()["rgb"] == "inputs=xyz"
    other = replace(seen_by("xyz", TEST), rgb=torch.zeros_like(TEST.rgb))
    assert alone["xyz"].predict(other).score == alone["xyz"].predict(seen_by("xyz", TEST)).score
    assert alone["rgb"].idle_arguments()["foreground"] == "inputs=rgb"


def test_padding_has_no_say(alone: dict[str, AST]) -> None:
    """Of a wide picture the rows above and below are padding: they are not scored, nor averaged."""
    frame = Frame.centred((100, 200), 200, SIZE)
    scores = alone["rgb"].predict(replace(seen_by("rgb", TEST), frame=frame))
    rows = torch.zeros(8, dtype=torch.bool)
    rows[frame.cells((8, 8))[0]] = True
    own = scores.parts["student"].scores
    assert (int(rows.sum()), bool((own[rows] > 0).all()), bool(own[~rows].any())) == (4, True, False)
    inside = scores.prepared_map[frame.rows, frame.columns]
    assert scores.score == pytest.approx(inside.mean().item())
    assert inside.shape == (32, 64)


def test_a_fit_that_ended_early_goes_on_to_the_same_weights(
    fitted: AST, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit stops within the student's training, at its first saved state."""
    save = training._State.save

    def stopping(self: Any, path: Path, step: int) -> None:
        save(self, path, step)
        if self.kind == "AST student":
            raise KeyboardInterrupt

    train = training.train
    monkeypatch.setattr("mmad_bank.methods.ast.training.train", lambda *a, **k: train(*a, **{**k, "save_every": 2}))
    monkeypatch.setattr(training._State, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        AST(**SMALL).fit(PARTS, workdir=tmp_path)
    state = torch.load(tmp_path / "student.pt", weights_only=True)
    assert (state["step"], state["arguments"]["steps"]) == (2, 6)
    monkeypatch.undo()
    resumed = AST(**SMALL).fit(PARTS, workdir=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(states(resumed), states(fitted), strict=True))
    other = AST(**SMALL, seed=1).fit(PARTS, workdir=tmp_path)
    assert not torch.equal(states(other)[2], states(fitted)[2])


def test_damaged_networks_are_refused(fitted: AST, tmp_path: Path) -> None:
    for name, key, value in (
        ("teacher", "blocks.0.permutation", torch.zeros),
        ("student", "first.bias", lambda n: torch.full((n,), torch.nan)),
    ):
        fitted.save(tmp_path / name)
        manifest = tmp_path / name / "model.json"
        content = json.loads(manifest.read_text())
        manifest.write_text(
            json.dumps({fact: one for fact, one in content.items() if fact not in ("checksum", "files")})
        )
        state = load_file(tmp_path / name / f"{name}.safetensors")
        save_file({**state, key: value(len(state[key])).to(state[key].dtype)}, tmp_path / name / f"{name}.safetensors")
        with pytest.raises(FormatError, match=f"{name}.safetensors: expected"):
            methods.load(tmp_path / name)


def test_a_batch_is_at_most_all_images(fitted: AST) -> None:
    few = {**SMALL, "teacher_epochs": 1, "student_epochs": 1}
    all_at_once, more = (AST(**{**few, "batch": batch}).fit(PARTS[:2]) for batch in (2, 10**9))
    assert all(torch.equal(a, b) for a, b in zip(states(all_at_once), states(more), strict=True))


def test_there_is_no_normal_patch_to_name(fitted: AST) -> None:
    found = fitted.predict(TEST)
    assert fitted.explain(found) == []
    with pytest.raises(InputError, match="part: expected one of student, found 'rgb'"):
        fitted.explain(found, "rgb")
    with pytest.raises(InputError, match="place: row: expected 0 to 7"):
        fitted.explain(found, place=(8, 0))


def test_the_trainings_learn(fitted: AST) -> None:
    """More epochs bring the student nearer to its teacher on what it has seen."""
    longer = AST(**{**SMALL, "student_epochs": 12}).fit(PARTS)
    assert all(
        torch.equal(a, b) for a, b in zip(longer.teacher_.parameters(), fitted.teacher_.parameters(), strict=True)
    )
    assert own_scores(longer, PARTS[0]).mean() < 0.8 * own_scores(fitted, PARTS[0]).mean()


def test_samples_without_a_point_are_left_out() -> None:
    empty = replace(a_part(9, "part/train/good/empty"), xyz=torch.zeros(3, SIZE, SIZE))
    model = AST(**{**SMALL, "teacher_epochs": 1, "student_epochs": 1}, inputs=("xyz",)).fit([*PARTS[:2], empty])
    assert model.train_ids_ == [sample.id for sample in PARTS[:2]]
    assert "expected measured points" in model.skipped_["part/train/good/empty"]


def test_pictures_without_their_background_are_refused() -> None:
    black = Preprocessing.recipe("m3dm", size=SIZE)
    with pytest.raises(InputError, match=r"with their background, which ast compares, .* prepare RAW --recipe cfm\)"):
        AST(**SMALL).fit([replace(sample, preparation=black) for sample in PARTS])


def test_it_cannot_be_exported_and_says_so(fitted: AST) -> None:
    with pytest.raises(InputError, match=r"model: expected one of patchcore, .* to export, found ast"):
        list(networks_of(fitted))


def test_a_training_that_diverges_names_the_step() -> None:
    with pytest.raises(MmadBankError, match=r"train_teacher: .* step \d+ of 6: look for NaN .* or lower lr"):
        AST(**{**SMALL, "lr": 1e30}).fit(PARTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": ()}, r"inputs: expected some of rgb, xyz, each once, found \(\)"),
        ({"inputs": ("rgb", "depth")}, r"inputs: expected some of rgb, xyz, each once, found \('rgb', 'depth'\)"),
        ({"image_score": "sum"}, "image_score: expected max, mean or none|image_score: expected one of max, mean"),
        ({"position_channels": 30}, "position_channels: expected a multiple of 4, .* found 30"),
        ({"clamp": 0.0}, "clamp: expected a number above 0"),
        ({"coupling_blocks": 0}, "coupling_blocks: expected an integer from 1"),
        ({"student_epochs": 0}, "student_epochs: expected an integer from 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AST(**{**SMALL, **arguments})
    with pytest.raises(InputError, match="AST: not fitted"):
        AST(**SMALL).predict(TEST)
