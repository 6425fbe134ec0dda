"""Parts that several images show, in an evaluation: one score, one label and one verdict for each."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("scipy")

from scored_samples import Darkness, make

from mmad_bank.data import PartView, Sample
from mmad_bank.errors import InputError
from mmad_bank.evaluation import Evaluation, PartScore, PartScores, SampleScore, Summary, evaluate
from mmad_bank.methods.parts import HeldOutParts
from mmad_bank.methods.verdicts import ModelCalibration, Observed
from mmad_bank.metrics import auroc

PATTERN = "*/{part}_{view}"


def image(number: int, defect: str, part: int, view: str) -> Sample:
    return replace(make(number, defect), id=f"part/test/{defect}/{part}_{view}")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Parts 0 to 4 are good; of 5 to 8 one view is defective, and lies in another folder."""
    good = [image(10 * part + number, "good", part, view) for part in range(5) for number, view in enumerate("ab")]
    mixed = [image(n, "shape", part, "a") for n, part in enumerate(range(5, 9))]
    return [*good, *mixed, *(image(100 + part, "good", part, "b") for part in range(5, 9))]


def calibrated(samples: list[Sample], by_part: bool = True) -> Darkness:
    """A method with a calibration on the scores of some samples, two to a part."""
    shown = [PartView(str(number // 2), "ab"[number % 2]) for number in range(len(samples))]
    method = Darkness()
    observed = Observed("held-out parts", len(samples), HeldOutParts(PATTERN, shown) if by_part else None)
    for one in method.predict(samples):
        observed.take(one.score, {}, one.prepared_map)
    method.calibration_ = observed.calibration()
    assert isinstance(method.calibration_, ModelCalibration)
    return method


def tables(evaluation: Evaluation) -> str:
    text = io.StringIO()
    Summary([evaluation]).print(Console(file=text, width=200))
    return text.getvalue()


def test_a_part_has_the_highest_score_and_the_worst_label_of_its_images(samples: list[Sample]) -> None:
    method = calibrated([make(1000 + number) for number in range(18)])
    found = evaluate(method, samples, views=PATTERN)
    scores = {one.id: one.score for one in found.scores}
    expected = {
        part: max(score for name, score in scores.items() if name.split("/")[-1][0] == str(part)) for part in range(9)
    }
    assert found.parts is not None
    assert [one.part for one in found.parts.scores] == [f"part/test/{part}" for part in range(9)]
    assert [one.score for one in found.parts.scores] == list(expected.values())
    assert [one.label for one in found.parts.scores] == [0] * 5 + [1] * 4
    assert found.parts.auroc == auroc([0] * 5 + [1] * 4, list(expected.values()))
    assert found.parts.notes == []
    for one in found.parts.scores:
        assert scores[next(name for name in scores if name.endswith(f"{one.part[-1]}_{one.view}"))] == one.score
        assert one.verdict == ("bad" if one.score > found.decisions.threshold.score else "good")
    decisions = found.decisions
    assert (decisions.found + decisions.missed, decisions.false_alarms + decisions.passed) == (4, 5)
    assert (decisions.held_out, decisions.unit) == (9, "parts")
    assert decisions.found == sum(one.verdict == "bad" for one in found.parts.scores if one.label)
    assert len(found.scores) == len(samples)  # images are measured as ever
    content = found.as_json()
    assert (content["parts"]["good"], content["parts"]["anomalous"]) == (5, 4)
    assert content["decisions"]["unit"] == "parts"
    assert content["images"]["good"] == 14
    shown = tables(found)
    assert "parts, each by the highest score of its images" in shown
    assert "verdicts on parts at the promised false-alarm rate" in shown
    assert "part: verdicts are calibrated on 9 held-out parts" in shown


def test_without_views_nothing_is_said_of_parts(samples: list[Sample]) -> None:
    method = calibrated([make(1000 + number) for number in range(18)], by_part=False)
    found = evaluate(method, samples)
    assert found.parts is None
    assert "parts" not in found.as_json()
    assert "unit" not in found.as_json()["decisions"]
    assert found.decisions.found + found.decisions.missed == 4
    assert found.decisions.false_alarms + found.decisions.passed == 14
    assert "verdicts on parts" not in tables(found)
    with pytest.raises(InputError, match="views: expected a model that is calibrated on parts, found one"):
        evaluate(method, samples, views=PATTERN)
    with pytest.raises(InputError, match=r"views: expected a pattern with \{part\} once"):
        evaluate(Darkness(), samples, views="{view}")


def images(*names: str) -> list[Any]:
    return [SampleScore(name, 0, "good", float(number), {}) for number, name in enumerate(names)]


def test_images_that_show_no_part_are_told() -> None:
    found = PartScores.of(images("1_a", "1_b", "2_a", "2_b", "x", "3_a", "3_a"), "{part}_{view}")
    assert found.scores == [PartScore("1", "b", 2, 0, 1.0), PartScore("2", "b", 2, 0, 3.0)]
    assert found.notes == [
        "part 3: expected one picture of view a, found 3_a and 3_a; such images count by themselves only",
        "expected names of the form {part}_{view}, found x; such images count by themselves only",
    ]
    assert found.auroc is None


def test_parts_with_fewer_views_are_told() -> None:
    names = ("good/1_a", "good/1_b", "good/2_a", "hole/2_b", "good/3_a", "good/3_b")
    (note,) = PartScores.of(images(*names, "good/4_a", "good/4_b"), "{part}_{view}").notes
    assert note == "2 of 5 parts have fewer than 2 views; */{part}_{view} joins those in folders of several kinds"
    assert PartScores.of(images(*names), "*/{part}_{view}").notes == []
    assert PartScores.of([], "{part}_{view}").notes == []


def test_a_method_that_is_not_calibrated_has_scores_of_parts(samples: list[Sample]) -> None:
    found = evaluate(Darkness(), samples, views=PATTERN)
    assert found.decisions is None
    assert len(found.parts.scores) == 9
    assert "verdict" not in found.parts.scores[0].as_json()
    assert torch.isfinite(torch.tensor([one.score for one in found.parts.scores])).all()
