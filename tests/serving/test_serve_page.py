"""The page to try a picture on, in a real browser: it uploads a picture and shows the map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "uvicorn", "timm", "tifffile"):
    pytest.importorskip(package)

from browser import Browser, browser, program
from data_trees import add_picture
from running_service import Service, running
from serving_models import decoded, save_depth_model, save_picture_model

from mmad_bank.methods import load
from mmad_bank.serving.pages import trial_page

KEY = "a-key-of-the-test"
in_browser = pytest.mark.skipif(program() is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for pictures in (save_picture_model(folder / "models" / "tile"), save_depth_model(folder / "models" / "part")):
        pictures.rename(folder / pictures.name)
    add_picture(folder / "bad.png", seed=99, spot=True)
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as one:
        yield one


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    with running(folder / "models", data=folder / "tile-pictures") as one:
        yield one


def text(page: Browser, name: str) -> str:
    return str(page.run(f"document.getElementById('{name}').textContent"))


@in_browser
def test_a_picture_is_uploaded_and_its_map_is_seen(
    folder: Path, page: Browser, service: Service, tmp_path: Path
) -> None:
    page.open(f"{service.url}/?model=tile")
    page.until("document.getElementById('model').value === 'tile' && document.getElementById('depth-zone').hidden")
    page.upload("#image", folder / "bad.png")
    page.until("!document.getElementById('result').hidden")
    expected = load(folder / "models" / "tile").predict(folder / "bad.png")
    assert text(page, "verdict") == "Bad"
    assert float(text(page, "value-score")) == pytest.approx(expected.score, rel=1e-3)
    assert page.run("document.querySelectorAll('#regions tbody tr').length") == len(expected.regions) > 0
    assert page.run("document.querySelectorAll('#nearest tbody tr').length") == 4
    crops = "[...document.querySelectorAll('#crops img')].map((one) => one.naturalWidth)"
    page.until(f"{crops}.length === 5 && {crops}.every(Boolean)")  # the worst patch, and four normal ones
    page.screenshot(tmp_path / "page.png")
    assert decoded((tmp_path / "page.png").read_bytes()).std() > 10
    # The map lies over the picture: redder where the spot is than without it, and nowhere else.
    page.run("document.getElementById('outlines').click()")
    red = "(() => { const c = document.getElementById('canvas'), f = c.height / 48;"
    red += " const at = (x, y) => c.getContext('2d').getImageData(x * f, y * f, 1, 1).data;"
    red += " const s = at(24, 16), o = at(60, 44); return [s[0] - s[2], o[0] - o[2]]; })()"
    spot, elsewhere = page.run(red)
    page.run(
        "(() => { const o = document.getElementById('opacity'); o.value = 0; o.dispatchEvent(new Event('input')) })()"
    )
    assert page.run(red)[0] < 10
    assert spot > max(40, elsewhere)
    assert page.errors == []


@in_browser
def test_a_picture_with_depth_on_a_phone(folder: Path, page: Browser, service: Service) -> None:
    sample = folder / "part-data" / "part" / "train" / "good"
    page.open(f"{service.url}/?model=part", width=390, height=800, dark=True)
    page.until("document.getElementById('model').value === 'part' && !document.getElementById('depth-zone').hidden")
    page.upload("#image", sample / "rgb" / "001.png")
    page.until("document.getElementById('image-name').textContent === '001.png'")
    assert page.run("document.getElementById('score').disabled")
    page.upload("#depth", sample / "xyz" / "001.tiff")
    page.until("!document.getElementById('result').hidden")
    assert text(page, "verdict") == "No verdict"
    assert page.run("document.documentElement.scrollWidth") <= 390
    # The next picture is of another part: it is not scored with this one's depth, and this one's verdict goes.
    page.upload("#image", sample / "rgb" / "002.png")
    page.until("document.getElementById('image-name').textContent === '002.png'")
    assert page.run("document.getElementById('result').hidden")
    assert page.run("document.getElementById('score').disabled")
    assert text(page, "status") == "The model needs a file of depth, too."
    page.upload("#depth", sample / "xyz" / "002.tiff")
    page.until("!document.getElementById('result').hidden")
    assert text(page, "about").startswith("002")
    assert page.errors == []


@in_browser
def test_another_model_leaves_no_verdict_of_the_one_before(folder: Path, page: Browser, service: Service) -> None:
    page.open(f"{service.url}/?model=tile")
    page.until("document.getElementById('model').value === 'tile' && document.getElementById('depth-zone').hidden")
    rates = "[...document.getElementById('rate').options].map((one) => one.disabled)"
    assert page.run(rates) == [False, False, True, True, True]  # 12 held-out images promise 1/13
    page.upload("#image", folder / "bad.png")
    page.until("!document.getElementById('result').hidden")
    script = "(() => { const m = document.getElementById('model'); m.value = 'part';"
    page.run(script + " m.dispatchEvent(new Event('change')) })()")
    page.until("!document.getElementById('depth-zone').hidden")
    assert page.run("document.getElementById('result').hidden")
    assert page.run("document.getElementById('score').disabled")
    assert page.errors == []


@in_browser
def test_errors_and_keys_are_said(folder: Path, page: Browser) -> None:
    with running(folder / "models", api_keys=(KEY,)) as service:
        page.open(f"{service.url}/?model=tile")
        page.until("!document.getElementById('key-field').hidden")
        assert text(page, "status") == "This service asks for a key. Enter it above."
        script = f"(() => {{ const k = document.getElementById('key'); k.value = '{KEY}';"
        page.run(script + " k.dispatchEvent(new Event('change')) })()")
        page.until(
            "document.getElementById('model').value === 'tile' && !document.getElementById('status').textContent"
        )
        (folder / "no.png").write_bytes(b"no picture")
        page.upload("#image", folder / "no.png")
        page.until("document.getElementById('status').className === 'error'")
        assert text(page, "status").startswith("image (no.png): cannot be read as a picture")


def test_pages_load_nothing_from_elsewhere(folder: Path, service: Service) -> None:
    page, routes = service.get("/"), service.get("/docs")
    for one in (page, routes):
        assert (one.status, one.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in one.headers["content-security-policy"]
        assert b"http://" not in one.body
        assert b"https://" not in one.body
    assert page.body.decode() == trial_page()
    for path in service.get("/openapi.json").json["paths"]:
        assert path in routes.body.decode()


def test_every_field_of_the_page_has_a_label() -> None:
    import re

    page = trial_page()
    fields = set(re.findall(r"<(?:input|select)[^>]* id=\"([\w-]+)\"", page))
    wrapped = set(re.findall(r"<label[^>]*>(?:(?!</label>).)*<input id=\"([\w-]+)\"", page, re.DOTALL))
    assert fields == set(re.findall(r"<label for=\"([\w-]+)\"", page)) | wrapped
    ids = set(re.findall(r" id=\"([\w-]+)\"", page))
    used = set(re.findall(r"\$\(\"([\w-]+)\"\)", page))
    assert used <= ids
    assert np.unique(list(ids)).size == len(re.findall(r" id=\"", page))
