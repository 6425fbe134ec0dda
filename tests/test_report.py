"""The HTML report: self-contained, escaped, complete, and honest about what is not there."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("scipy", "matplotlib", "PIL"):
    pytest.importorskip(package)

from scored_samples import Darkness, make

from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import Part, Prediction, Reason
from mmad_bank.report import Report, charts

EVIL = '<script>alert("x")</script>&"\'</title></style>'
VOID = {"meta", "img", "br"}


class Strict(HTMLParser):
    """Notes elements and attributes, and that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


class Explained(Darkness):
    """Names a training patch for every score."""

    def explain(
        self, prediction: Prediction, part: str | None = None, *, place: tuple[int, int] | None = None, n: int = 4
    ) -> list[Reason]:
        assert place is not None
        return [Reason(f"{EVIL}/train/good/7", place, 0.25), Reason(None, None, 0.5), Reason("gone", (0, 0), 0.75)][:n]


class Training:
    """A training split of one image."""

    def __init__(self) -> None:
        self.records = [type("Record", (), {"id": f"{EVIL}/train/good/7"})]

    def __getitem__(self, index: int) -> Sample:
        return make(7)


def parse(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def render(samples: list[Sample], method: Darkness | None = None, training: object = None) -> str:
    report = Report()
    method = method or Explained()
    report.add(evaluate(method, samples, examples=2), method, training)  # type: ignore[arg-type]
    return report.to_html()


@pytest.fixture(scope="module")
def page() -> str:
    samples = [make(i, kind, category=EVIL) for kind in ("good", "colour", EVIL) for i in range(4)]
    samples.append(replace(samples[0], id=f"{EVIL}bad"))
    return render(samples, training=Training())


def test_no_name_can_inject_html(page: str) -> None:
    parsed = parse(page)
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(parsed.tags)
    assert parsed.tags.count("title") >= 1
    assert not any(name.startswith("on") for _, name, _ in parsed.attributes)
    assert EVIL in "".join(parsed.text), "it is shown as it is"
    assert "<script" not in page


def test_page_needs_nothing_else(page: str) -> None:
    parsed = parse(page)
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "data", "poster", "srcset"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:80])
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in page
    assert "@import" not in style[1]
    targets = {value for _, name, value in parsed.attributes if name == "id"}
    assert {value[1:] for _, name, value in parsed.attributes if name == "href"} <= targets
    assert ("meta", "http-equiv", "Content-Security-Policy") in parsed.attributes


def test_what_is_shown(page: str) -> None:
    text = " ".join(parse(page).text)
    for words in (
        "I-AUROC", "P-AUROC", "AUPRO @30%", "ROC of the images", "PRO of the pixels", "Image scores", "depth: near",
        "Highest scores of good images", "Lowest scores of defective images", "above 4 of 4 good images", "left out",
        "7, distance 0.25", "not recorded, distance 0.5", "gone, distance 0.75", "the defect's outline",
    ):  # fmt: skip
        assert words in text, words
    pictures = page.count("data:image/jpeg;base64,")
    assert pictures == 8 * (4 + 2 * 2), "four an image; for each of two parts the worst patch and the one that is there"


def test_categories_without_anomalies_masks_or_explanations() -> None:
    text = render([make(i) for i in range(3)], Darkness())
    assert "undefined" in text
    assert "ROC of the images" not in text
    parse(text)
    text = render([make(0), *(make(i, "shape", masked=False) for i in range(2))], Darkness())
    assert "ground truth: not known" in text
    assert "PRO of the pixels" not in text
    parse(text)


def test_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one evaluation"):
        Report().write(tmp_path)
    report = Report()
    for name in ("one", "two"):
        report.add(evaluate(Darkness(), [make(i, kind, category=name) for kind in ("good", "x") for i in range(2)]))
    path = report.write(tmp_path / "new" / "folder")
    text = path.read_text(encoding="utf-8")
    assert path.name == "index.html"
    assert '<a href="#category-2">two</a>' in text
    assert '<tr class="mean">' in text
    parse(text)


def test_curves_end_at_the_limit_and_keep_their_corners() -> None:
    x, y = np.array([0.0, 0.1, 0.2, 0.6, 1.0]), np.array([0.0, 0.5, 1.0, 1.0, 1.0])
    drawn = charts.curves({"a<b": (x, y), "none": (np.empty(0), np.empty(0))}, "x", "y", 0.4)
    assert "a&lt;b" in drawn
    (path,) = re.findall(r'd="M([^"]*)" stroke="#16191d"', drawn)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert len(points) == 3, "start, corner, limit: the point on the straight stretch is left out"
    assert points[-1][0] == pytest.approx(342 - 10, abs=0.2)
    assert points[1][1] == points[2][1] == pytest.approx(8)


def test_histograms_hold_every_score() -> None:
    rng = np.random.default_rng(0)
    many = {"good": rng.normal(size=50), "x": rng.normal(3, 1, 20)}
    for groups in ({"good": [1.0], "x": [1.0]}, many, {"x": [2.0, 3.0]}):
        drawn = charts.histograms(groups)
        assert all(f"{name}  ({len(values)})" in drawn for name, values in groups.items())
        assert "nan" not in drawn


def test_part_without_colours_of_its_own() -> None:
    sample = make(1, "shape")
    part = Part(1.0, torch.rand(4, 4))
    prediction = Prediction(1.0, torch.rand(32, 32), sample, {"only": part})

    class Single(Explained):
        def _predict(self, samples: list[Sample]) -> list[Prediction]:
            return [replace(prediction, sample=sample, score=float(i)) for i, sample in enumerate(samples)]

    text = render([make(0), sample], Single())
    assert "only" in text
    parse(text)
