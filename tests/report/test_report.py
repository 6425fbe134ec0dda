"""The HTML report: self-contained, escaped, complete, for everybody to read, and honest about what is not there."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("scipy", "matplotlib", "PIL"):
    pytest.importorskip(package)

from scored_samples import SIZE, Darkness, make

from mmad_bank.calibration import Calibration
from mmad_bank.data import RegionOfInterest, Sample
from mmad_bank.data.frame import Frame
from mmad_bank.errors import InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import Part, Prediction, Reason
from mmad_bank.methods.map_scale import MapScale
from mmad_bank.methods.verdicts import PIXEL_RATES, ModelCalibration
from mmad_bank.report import Origin, Report, charts
from mmad_bank.report.gallery import Thumbnails

EVIL = '<script>alert("x")</script>&"\'</title></style>'
VOID = {"meta", "img", "br", "input"}


class Strict(HTMLParser):
    """Notes elements and attributes, and that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elements.append((tag, attrs))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elements.append((tag, attrs))
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
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


def deep(sample: Sample) -> Sample:
    """Give a sample a cloud that is not all at one depth."""
    return replace(sample, xyz=torch.linspace(0.5, 1, 3 * SIZE * SIZE).view(3, SIZE, SIZE))


def parse(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def render(samples: list[Sample], method: Darkness | None = None, training: object = None) -> str:
    report = Report()
    method = method or Explained()
    report.add(evaluate(method, samples, examples=2, watch=report.watch), method, training)  # type: ignore[arg-type]
    return report.to_html()


@pytest.fixture(scope="module")
def page() -> str:
    samples = [deep(make(i, kind, category=EVIL)) for kind in ("good", "colour", EVIL) for i in range(4)]
    samples.append(replace(samples[0], id=f"{EVIL}bad"))
    return render(samples, training=Training())


def test_no_name_can_inject_html(page: str) -> None:
    parsed = parse(page)
    assert not {"iframe", "object", "link", "base", "form"} & set(parsed.tags)
    assert parsed.tags.count("script") == 1, "the page's own, which the policy knows by its hash"
    assert parsed.tags.count("title") >= 1
    assert not any(name.startswith("on") for _, name, _ in parsed.attributes)
    assert EVIL in "".join(parsed.text), "it is shown as it is"
    assert page.count("<script") == 1
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashed = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{hashed}'\"" in page


def test_missing_training_pictures_are_told(page: str) -> None:
    words = "have their picture's name alone"
    assert page.count(words) == 1, "once, though several cases name the patch that is gone"
    samples = [make(i, kind) for kind in ("good", "colour") for i in range(2)]
    assert words not in render(samples, Darkness())


def test_page_needs_nothing_else(page: str) -> None:
    parsed = parse(page)
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "data", "poster", "srcset"):
            assert re.match(r"data:image/|#|images/1-\d{6}\.jpg$", value), (tag, name, value[:80])
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in page
    assert not re.search(r"(?:https?|ftp):|src=\W*//", re.sub(r"base64,[^\"]*", "", page))
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
        "All 12 images", "none: the model is not calibrated", "xyz branch",
        "framed: each branch's worst patch", "The result and that of each branch alone",
    ):  # fmt: skip
        assert words in text, words
    assert not re.search(r"each part|its parts", text), "a part is what is inspected"
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
    facts = json.loads((path.parent / "report.json").read_text())
    assert [one["category"] for one in facts["categories"]] == ["one", "two"]
    assert facts["about"]["verdicts"].startswith("none: the model is not calibrated")


def test_regions_are_drawn_and_named() -> None:
    """The example's map has the regions' outlines, and its words their peaks; so have the small pictures' maps."""
    peaks = Calibration(torch.full((19,), 1.5), "validation images")
    low = ModelCalibration({"fused": peaks}, peaks, (0.5, *[0.9] * (len(PIXEL_RATES) - 1)))

    class Seeing(Darkness):
        def _predict(self, samples: list[Sample]) -> list[Prediction]:
            return [replace(one, roi=self.roi_) for one in super()._predict(samples)]

    def squared(i: int) -> Sample:
        rgb = torch.zeros(3, SIZE, SIZE)
        rgb[:2, 10:14, 20:26] = 0.4 + 0.1 * i  # up to 1 each: the map is their sum
        return replace(make(i, "x"), rgb=rgb, id=f"part/test/x/{i}")

    method, samples = Seeing(), [make(0), squared(5), squared(6)]
    method.calibration_ = low
    text = " ".join(parse(render(samples, method)).text)
    assert "anomaly map; outlined: regions with peaks above 1.5: 1 (1.8)" in text
    assert "anomaly map; no peak above 1.5" in text
    assert "gray: outside" not in text
    method.roi_ = RegionOfInterest(mask=np.eye(SIZE, dtype=bool))
    assert "gray: outside of the region of interest" in " ".join(parse(render(samples, method)).text)
    plain, marked = Thumbnails(), Thumbnails()
    prediction = method.predict(squared(6))
    plain.add(replace(prediction, calibration=None, roi=None))
    marked.add(prediction)
    assert plain.draw(0, (0.0, 2.0)) != marked.draw(0, (0.0, 2.0))


def test_all_images_are_there(tmp_path: Path) -> None:
    from PIL import Image

    report = Report(Origin("mmad-bank evaluate <model>", "parts & more", "test", "model"))
    samples = [make(i % 8, kind) for i in range(60) for kind in ("good", "colour")]
    report.add(evaluate(Darkness(), samples, watch=report.watch), Darkness())
    path = report.write(tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    parsed = parse(text)
    cards = [dict(attributes) for tag, attributes in parsed.elements if tag == "li" and ("class", "card") in attributes]
    scores = [float(card["data-score"]) for card in cards]
    assert len(cards) == 120
    assert scores == sorted(scores, reverse=True)
    assert [card["data-label"] for card in cards].count("good") == 60
    pictures = [dict(attributes) for tag, attributes in parsed.elements if tag == "img"]
    listed = [one for one in pictures if one["src"].startswith("images/")]
    assert len({one["src"] for one in listed}) == 120
    assert all(one["loading"] == "lazy" for one in listed)
    for one in listed:
        with Image.open(path.parent / one["src"]) as picture:
            assert picture.size == (64, 32), "the picture, and beside it the map"
    words = "".join(parsed.text)
    facts = ("mmad-bank evaluate <model>", "parts & more, split test", "Darkness, fitted on 1 normal images, model")
    for fact in facts:
        assert fact in words


def test_the_list_names_images_whose_pictures_were_not_kept() -> None:
    report = Report()
    report.add(evaluate(Darkness(), [make(i, kind) for kind in ("good", "x") for i in range(2)]))
    assert report.to_html().count('<li class="card"') == 4


def test_pictures_of_another_category_are_refused() -> None:
    report = Report()
    evaluate(Darkness(), [make(i) for i in range(3)], watch=report.watch)
    with pytest.raises(InputError, match="3 images watched, 2 scored"):
        report.add(evaluate(Darkness(), [make(i) for i in range(2)]))


def test_everybody_can_read_it(page: str) -> None:
    """Every picture has words, every table a caption and headings with a scope, every control a label."""
    parsed = parse(page)
    for tag, pairs in parsed.elements:
        attributes = dict(pairs)
        if tag == "img":
            assert attributes["alt"].strip()
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
        if tag in ("select", "input"):
            assert ("label", "for", attributes["id"]) in parsed.attributes
        if tag == "html":
            assert attributes["lang"] == "en"
    tables = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    assert len(tables) >= 4
    assert all(table.startswith("<caption>") for table in tables)
    assert page.count('<div class="scroll" tabindex="0" role="region" aria-label="') == len(tables)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_one_scale_for_all_pictures_of_a_model() -> None:
    method = Explained()
    method.map_scale_ = MapScale(7, "training images", {"fused": dict.fromkeys((0.5, 0.9), 0.25) | {0.999: 0.75}})
    samples = [make(i, kind) for kind in ("good", "colour") for i in range(4)]
    for chosen in (samples, samples[:5]):
        text = " ".join(parse(render(chosen, method)).text)
        assert "Of 7 training images, nine pixels in ten stay below 0.25, the first colour" in text
        assert "one in a thousand is above 0.75" in text
    assert "the model has none of normal images" in render(samples, Darkness())


def test_no_depth_no_panel() -> None:
    samples = [make(i, kind) for kind in ("good", "x") for i in range(2)]
    assert "depth: near" not in render(samples)
    assert "depth: near" in render([deep(one) for one in samples])


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    report = Report()
    samples = [make(i, kind) for kind in ("good", "x") for i in range(2)]
    report.add(evaluate(Darkness(), samples, watch=report.watch))
    target = tmp_path / "report"
    target.mkdir()
    report.write(target)
    report.write(target)
    for name in ("thesis.txt", "images/holiday.jpg"):
        (target / name).write_text("years of work")
        with pytest.raises(InputError, match=f"a report and nothing else, found '{name}'"):
            report.write(target)
        assert (target / name).read_text() == "years of work"
        (target / name).unlink()
    (target / "report.json").write_text("{}")
    with pytest.raises(InputError, match=r"nothing else, found 'images', 'index\.html'"):
        report.write(target)


def test_a_page_of_ones_own_is_not_replaced(tmp_path: Path) -> None:
    report = Report()
    report.add(evaluate(Darkness(), [make(i) for i in range(2)]))
    page = tmp_path / "index.html"
    page.write_text("my page")
    with pytest.raises(InputError, match="a report and nothing else"):
        report.write(tmp_path)
    page.write_text(report.to_html())  # as older versions wrote it: the page alone
    report.write(tmp_path)
    assert (tmp_path / "report.json").is_file()


def test_padding_is_not_shown(tmp_path: Path) -> None:
    """A picture of half the square's height is shown as such, and so is what frames its worst patch."""
    from PIL import Image

    frame = Frame.centred((SIZE // 2, SIZE), SIZE)
    samples = [replace(deep(make(i, kind)), frame=frame) for kind in ("good", "x") for i in range(2)]
    report = Report()
    report.add(evaluate(Darkness(), samples, examples=1, watch=report.watch), Darkness())
    path = report.write(tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    shapes = {
        Image.open(BytesIO(b64decode(data))).size for data in re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)
    }
    assert shapes == {(SIZE, SIZE // 2), (800, 400)}, "the map is enlarged, for the outlines of regions"
    assert f'viewBox="0 {SIZE // 4} {SIZE} {SIZE // 2}"' in text
    with Image.open(path.parent / "images" / "1-000000.jpg") as picture:
        assert picture.size == (2 * SIZE, SIZE // 2)


def test_curves_end_at_the_limit_and_keep_their_corners() -> None:
    x, y = np.array([0.0, 0.1, 0.2, 0.6, 1.0]), np.array([0.0, 0.5, 1.0, 1.0, 1.0])
    drawn = charts.curves({"a<b": (x, y), "none": (np.empty(0), np.empty(0))}, "x", "y", 0.4)
    assert "a&lt;b" in drawn
    (path,) = re.findall(r'd="M([^"]*)" style="stroke:var\(--ink\)"', drawn)
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
