"""``mmad-bank bench`` at tiny sizes: what it measures, and bad input."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from helpers import PROGRAM, call, refused

from mmad_bank.errors import InputError, MissingExtraError

pytest.importorskip("timm")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")

from mmad_bank import bench
from mmad_bank.methods import names


@pytest.mark.slow
def test_every_contestant_is_timed_by_stage_and_its_memory_counted() -> None:
    options = ("--methods", "M3DM,CFM", "--rounds", "2", "--batches", "1,2", "--json")
    done = subprocess.run([*PROGRAM, "bench", "--quick", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    m3dm, cfm = json.loads(done.stdout)["results"]
    assert (m3dm["name"], cfm["name"]) == ("M3DM", "CFM")
    for result in (m3dm, cfm):
        assert len(result["latencies"]) == 2
        assert sum(result["stages"].values()) == pytest.approx(result["median"], rel=0.5)
        assert set(result["throughput"]) == {"1", "2"}
        assert result["memory"] == result["weights"] + result["banks"] + result["activations"]
        assert result["peak"] > result["weights"] > 0
    assert m3dm["banks"] > 0 == cfm["banks"]
    assert "bank search and scores" in m3dm["stages"]
    assert "mappings" in cfm["stages"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--methods", "Magic,m3dm"),
            "error: --methods: expected some of patchcore, btf, shape_guided, m3dm, cfm, lsfa, mdss, ast,"
            " found 'magic'",
        ),
        (("--batches", "one"), "error: --batches: expected numbers above 0 such as 1,8, found 'one'"),
        (("--rounds", "0"), "error: --rounds: expected at least 1, found 0"),
        (("--workdir", __file__), "error: --workdir: expected a folder, found the file"),
        (("--bank-size", "0"), "error: --bank-size: expected at least 1, found 0"),
        (("--methods", "M3DM", "--bank-size", "99999"), "error: --bank-size: expected 1 to 1568"),
        (("--methods", "cfm,btf", "--set", "banks=rgb"), "error: --set: cfm has no argument 'banks'"),
        (("--methods", "cfm", "--set", "variant=Q"), "error: --set variant: expected"),
        (("--methods", "m3dm", "--set", "ratio=1"), "error: --set ratio: expected the vectors of a bank"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    assert refused("bench", "--quick", *arguments).startswith(message)


def test_every_method_is_found_by_its_name() -> None:
    for name in names():
        assert bench.find_methods(name.upper()) == [name]
    assert bench.find_methods(" , ".join(names())) == list(names())
    assert bench.find_methods("m3dm,M3DM , m3dm") == ["m3dm"]
    with pytest.raises(InputError, match=r"found 'magic', 'patchcor' \(did you mean 'patchcore'\?\)$"):
        bench.find_methods("Magic,cfm,patchcor")
    with pytest.raises(InputError, match="found none"):
        bench.find_methods(" , ")


def test_settings_are_for_the_methods_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def note(name: str, *, settings: Any, **more: Any) -> Any:
        given[name] = dict(settings)
        raise InputError("enough")

    monkeypatch.setattr(bench, "make_method", note)
    words = ["bench", "--methods", "cfm,m3dm", "--set", "variant=M", "--set", "bank-precision=int8", "--set", "sigma=2"]
    assert call(*words).exit_code == 2
    assert given == {"cfm": {"variant": "M", "sigma": 2.0}, "m3dm": {"bank_precision": "int8", "sigma": 2.0}}


def test_a_method_that_cannot_run_is_named_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.make_method

    def without_timm(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "btf":
            raise MissingExtraError("open3d", "multimodal", "FPFH")
        return whole(name, *arguments, **more)

    monkeypatch.setattr(bench, "make_method", without_timm)
    words = ["bench", "--quick", "--methods", "btf,patchcore", "--rounds", "1", "--batches", "1", "--times-only"]
    done = call(*words, "--json")
    assert done.exit_code == 3, done.output
    report = json.loads(done.stdout)
    assert [result["name"] for result in report["results"]] == ["PatchCore"]
    assert list(report["left_out"]) == ["BTF"]
    assert done.stderr.startswith("left out: BTF: ")
    assert len(done.stderr.splitlines()) == 1
    alone = call("bench", "--quick", "--methods", "BTF")
    assert (alone.exit_code, alone.stdout) == (2, "")
