"""The programs on the documentation's pages run, on tiny data."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from snippets import DOCS, check_words, commands, run, snippets

SHELL = "get-started/shell.md"
OWN_TESTS = (
    "how-to/pictures-alone.md", "how-to/folder-of-pictures.md",
    "how-to/point-clouds-alone.md", "how-to/feature-dumps.md", "how-to/serve.md",
    "how-to/many-machines.md",
    "how-to/many-machines-scoring.md", "how-to/ray-serve.md", "how-to/plan-a-selection.md",
)  # fmt: skip
METHODS = sorted(path.stem for path in (DOCS / "methods").glob("*.md") if path.stem != "index")
ON_DATA = ("how-to/mvtec3d-eyecandies.md", "how-to/embed.md", *(f"methods/{name}.md" for name in METHODS))
TRAINING = {f"methods/{name}.md" for name in ("ast", "cfm", "lsfa", "mdss", "shape_guided")}
WITHOUT = (
    "index.md", "get-started/index.md", "get-started/first-bank.md", "get-started/first-method.md",
    "how-to/bank-size.md", "how-to/benchmark.md", "how-to/own-pictures.md", "how-to/verdicts.md",
    "how-to/several-views.md", "how-to/integrations.md", "how-to/export.md", "how-to/c-and-cpp.md",
    "how-to/streams.md", "reference/bank-file.md",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the page "From the shell"; return the data that it prepares."""
    for package in ("timm", "tifffile", "open3d"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("shell")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(DOCS / SHELL)
    return folder / "prepared"


def test_from_the_shell_runs(prepared: Path) -> None:
    for name in ("ring.model/model.json", "scored", "train/rgb.npy", "rgb.bank", "scores.csv"):
        assert (prepared.parent / name).exists(), name


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in TRAINING else ()) for page in ON_DATA]
)
def test_pages_on_the_prepared_data_run(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    for folder in (prepared, prepared.parent / "parts"):
        shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.chdir(tmp_path)
    run(DOCS / page)


@pytest.mark.parametrize("page", WITHOUT)
def test_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    if page == "how-to/export.md":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    if page in ("get-started/first-method.md", "how-to/benchmark.md", "how-to/verdicts.md", "how-to/several-views.md"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    run(DOCS / page)


@pytest.mark.parametrize("page", OWN_TESTS)
def test_commands_of_pages_with_tests_of_their_own_exist(page: str) -> None:
    words = [one for snippet in snippets(DOCS / page) if snippet.language == "sh" for one in commands(snippet)]
    assert words
    for one in words:
        check_words(one)


def test_every_page_with_a_program_is_run() -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if snippets(path)}
    written_by_benchmarks = {page for page in pages if page.startswith("benchmarks/")}
    assert pages - written_by_benchmarks == {SHELL, *OWN_TESTS, *ON_DATA, *WITHOUT}


def test_no_two_commands_of_the_pages_write_to_one_place() -> None:
    places: dict[str, list[str]] = {}
    for page in (*DOCS.rglob("*.md"), DOCS.parent / "README.md"):
        for one in (words for snippet in snippets(page) if snippet.language == "sh" for words in commands(snippet)):
            for option, place in pairwise(one):
                if option in ("--out", "--report", "--markdown", "--csv", "--maps"):
                    places.setdefault(place, []).append(f"{page.name}: {' '.join(one[:3])}")
    assert len(places) > 20
    assert {place: by for place, by in places.items() if len(by) > 1} == {}


@pytest.mark.parametrize(
    "words", ["mmad-bank build a.npy --no-such", "mmad-bank fit m3dm d --set no_such=1", "mmad fit m3dm d"]
)
def test_wrong_commands_are_found(words: str) -> None:
    with pytest.raises(AssertionError):
        check_words(words.split())
