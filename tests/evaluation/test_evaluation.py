"""Evaluation against the metrics on everything at once, with a method whose scores are known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from scored_samples import SIZE, Darkness, make

from mmad_bank._internal.shares import percent
from mmad_bank.calibration import Calibration
from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.evaluation import FUSED, ROLES, Summary, evaluate
from mmad_bank.methods import Prediction
from mmad_bank.methods.verdicts import PIXEL_RATES, ModelCalibration
from mmad_bank.metrics import aupro, auroc


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make(i, kind) for kind in ("good", "colour", "shape", "<b>") for i in range(5)]


def test_metrics_are_those_of_everything_at_once(samples: list[Sample]) -> None:
    evaluation = evaluate(Darkness(), samples, batch=3)
    labels, masks = [s.label for s in samples], torch.stack([s.mask for s in samples if s.mask is not None])
    maps = {FUSED: torch.stack([s.rgb[:2].sum(0) for s in samples])}
    blurred = [Darkness().predict(s).parts for s in samples]
    for name in ("rgb", "xyz"):
        maps[name] = torch.stack([parts[name].map((SIZE, SIZE)) for parts in blurred])
    images = {FUSED: [float(m.max()) for m in maps[FUSED]]}
    images |= {name: [parts[name].score for parts in blurred] for name in ("rgb", "xyz")}
    assert list(evaluation.metrics) == [FUSED, "rgb", "xyz"]
    chosen = np.array([s.defect in ("good", "shape") for s in samples])
    for name, found in evaluation.metrics.items():
        assert found.image_auroc == auroc(labels, images[name])
        assert found.pixel_auroc == auroc(masks, maps[name])
        for limit, value in found.aupro.items():
            assert value == pytest.approx(aupro(masks, maps[name], limit), abs=1e-9)
        kind = evaluation.kinds["shape"][name]
        assert kind.image_auroc == auroc(np.array(labels)[chosen], np.array(images[name])[chosen])
        assert kind.pixel_auroc == auroc(masks[chosen], maps[name][chosen])
        assert kind.aupro[0.3] == pytest.approx(aupro(masks[chosen], maps[name][chosen]), abs=1e-9)
    assert evaluation.kinds["shape"]["rgb"].pixel_auroc < evaluation.kinds["shape"]["xyz"].pixel_auroc
    assert [score.id for score in evaluation.scores] == [s.id for s in samples]
    assert evaluation.seconds > 0


class _Compiling(Darkness):
    """A method that takes an hour to score its first samples, as one whose runtime compiles, and then a second each."""

    def __init__(self, runtime: str) -> None:
        super().__init__()
        self.runtime, self.clock = runtime, 0.0

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        predictions = super()._predict(samples)
        self.clock += len(samples) if self.clock else 3600.0
        return predictions


@pytest.mark.parametrize(
    ("runtime", "total", "batches"), [("openvino", 20, [4, 1, 1, 1, 1, 1]), ("torch", 3619, [4, 1, 1, 1, 1, 4])]
)
def test_time_of_compiling_is_not_counted(
    samples: list[Sample], runtime: str, total: float, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = _Compiling(runtime)
    monkeypatch.setattr("mmad_bank.evaluation.running.time", SimpleNamespace(perf_counter=lambda: method.clock))
    broken = replace(samples[0], id="part/test/good/bad")  # its batch is scored one by one
    evaluation = evaluate(method, [broken, *samples], batch=4)
    reading = evaluation.sections.get("reading", 0.0)
    assert (evaluation.seconds - reading) * len(samples) == pytest.approx(total)
    assert method.batches[:6] == batches
    assert evaluation.scores == evaluate(Darkness(), samples).scores


@pytest.mark.parametrize("n_thresholds", [99, None])
def test_thresholds_of_aupro_are_those_asked_for(samples: list[Sample], n_thresholds: int | None) -> None:
    evaluation = evaluate(Darkness(), samples, n_thresholds=n_thresholds)
    masks = torch.stack([s.mask for s in samples if s.mask is not None])
    maps = torch.stack([s.rgb[:2].sum(0) for s in samples])
    assert evaluation.metrics[FUSED].aupro[0.3] == pytest.approx(aupro(masks, maps, n_thresholds=n_thresholds))
    assert evaluation.metrics[FUSED].aupro != evaluate(Darkness(), samples).metrics[FUSED].aupro
    with pytest.raises(InputError, match="n_thresholds: expected"):
        evaluate(Darkness(), samples, n_thresholds=1)


def test_a_failing_sample_costs_itself_only(samples: list[Sample]) -> None:
    method = Darkness()
    broken = replace(samples[1], id="part/test/good/bad")
    infinite = replace(samples[7], id="part/test/colour/infinite")
    evaluation = evaluate(method, [samples[0], broken, *samples[2:7], infinite, *samples[8:]], batch=4)
    assert evaluation.failed == {
        "part/test/good/bad": "part/test/good/bad: expected something else",
        infinite.id: f"{infinite.id}: the method gave NaN or infinity",
    }
    assert method.batches[:5] == [4, 1, 1, 1, 1]
    assert len(evaluation.scores) == len(samples) - 2
    lines = [f"left out: {why}" for why in evaluation.failed.values()]
    assert [line for line in Summary([evaluation]).remarks() if "left out" in line] == lines, "as the commands say it"
    with pytest.raises(InputError, match="no sample can be scored; part/test/good/bad"):
        evaluate(method, [broken])
    with pytest.raises(InputError, match="found none"):
        evaluate(method, [])


def test_undefined_metrics_are_said(samples: list[Sample]) -> None:
    maskless = [make(i, kind, masked=kind == "good") for kind in ("good", "shape") for i in range(3)]
    for chosen, missing in (
        (samples[:5], {"image_auroc", "pixel_auroc", "aupro"}),  # no anomalies
        (maskless, {"pixel_auroc", "aupro"}),
        ([make(i, "shape") for i in range(2)], {"image_auroc"}),  # no good ones: their pixels still count
    ):
        evaluation = evaluate(Darkness(), chosen)
        found = evaluation.metrics[FUSED]
        assert set(found.undefined) == missing
        assert all("undefined" in why for why in found.undefined.values())
        assert [getattr(found, name) is None for name in ("image_auroc", "pixel_auroc")] == [
            name in missing for name in ("image_auroc", "pixel_auroc")
        ]
        assert all((value is None) == ("aupro" in missing) for value in found.aupro.values())
        facts = json.loads(json.dumps(evaluation.as_json(), allow_nan=False))
        assert set(facts["metrics"][FUSED]["undefined"]) == missing
        text = evaluation.to_markdown()
        assert "–" in text
        assert "undefined" in text
    for n, words in ((1, "1 image has no mask: it counts for"), (2, "2 images have no mask: they count for")):
        found = evaluate(Darkness(), [make(0), *(make(1 + i, "shape", masked=False) for i in range(n))])
        assert f"{words} I-AUROC only" in found.notes


def test_examples_are_bounded_and_extreme(samples: list[Sample]) -> None:
    evaluation = evaluate(Darkness(), samples, examples=2)
    by_role = {role: [e.prediction.score for e in evaluation.examples if e.role == role] for role in ROLES}
    good = sorted(score.score for score in evaluation.scores if score.label == 0)
    defects = sorted(score.score for score in evaluation.scores if score.label)
    assert by_role == {
        "highest good": good[:-3:-1], "lowest defect": defects[:2], "highest defect": defects[:-3:-1],
        "lowest good": good[:2],
    }  # fmt: skip
    few = evaluate(Darkness(), [samples[0], samples[6]], examples=2)
    assert len(few.examples) == 2, "an image is shown once, even if it is highest and lowest"
    assert evaluate(Darkness(), samples).examples == []


def test_defects_found_are_counted_by_kind() -> None:
    """Verdicts by a threshold that finds one of two kinds; those of several categories are added up."""
    method = Darkness()
    peaks = Calibration(torch.full((19,), 1.45), "validation images")
    method.calibration_ = ModelCalibration({"fused": peaks}, peaks, (1.0,) * len(PIXEL_RATES))
    samples = [make(i, kind) for kind in ("good", "colour", "x") for i in range(5)]
    one = evaluate(method, samples)
    found = {kind: sum(s.verdict == "bad" for s in one.scores if s.defect == kind) for kind in ("colour", "x")}
    assert found["x"] > found["colour"], "it is brighter in both channels"
    assert {kind: own["found"] for kind, own in one.as_json()["kinds"].items()} == found
    (title, heads, rows), *_ = [table for table in Summary([one, one]).tables() if "found" in table[0]]
    assert title == "defects found of each kind at the promised false-alarm rate"
    assert heads == ["kind of defect", "found"]
    assert rows == [[kind, f"{2 * n} of 10 ({percent(n / 5)})"] for kind, n in found.items()]
    bare = evaluate(Darkness(), samples)
    assert {kind: own["found"] for kind, own in bare.as_json()["kinds"].items()} == {"colour": None, "x": None}
    assert not any("found" in title for title, *_ in Summary([bare]).tables())
    assert any(title == "the result and that of each branch alone" for title, *_ in Summary([bare]).tables())


def test_summary_of_categories(samples: list[Sample]) -> None:
    other = [make(i, kind, category="cap|_x") for kind in ("good", "shape") for i in range(4)]
    lone = [make(i, "good", category="lone") for i in range(2)]
    evaluations = [evaluate(Darkness(), chosen) for chosen in (samples, other, lone)]
    summary = Summary(evaluations)
    image = [e.metrics[FUSED].image_auroc for e in evaluations]
    assert image[2] is None
    assert summary.mean()[0] == pytest.approx((image[0] + image[1]) / 2)
    facts = json.loads(json.dumps(summary.as_json(), allow_nan=False))
    assert [one["category"] for one in facts["categories"]] == ["part", "cap|_x", "lone"]
    assert facts["mean"][FUSED]["image_auroc"] == summary.mean()[0]
    text = summary.to_markdown()
    assert "cap\\|\\_x" in text
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert "**mean**" not in text
    assert "| mean |" in text
    for line in text.splitlines():
        if line.startswith("| ") and "category" in line:
            assert line.count("|") == len(summary.metric_names) + 4

    from rich.console import Console

    file = io.StringIO()
    summary.print(Console(file=file, width=20))
    assert "cap|_x" in file.getvalue()
    assert "…" not in file.getvalue()
