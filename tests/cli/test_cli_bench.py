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
        (("--methods", "Magic,m3dm"), "error: --methods: expected some of PatchCore; BTF; M3DM; M3DM, 8-bit banks;"),
        (("--batches", "one"), "error: --batches: expected numbers above 0 such as 1,8, found 'one'"),
        (("--rounds", "0"), "error: --rounds: expected at least 1, found 0"),
        (("--bank-size", "0"), "error: --bank-size: expected at least 1, found 0"),
        (("--methods", "M3DM", "--bank-size", "99999"), "error: --bank-size: expected 1 to 1568"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    assert refused("bench", "--quick", *arguments).startswith(message)


def test_every_name_of_the_table_and_every_method_is_a_name() -> None:
    for name in bench.CONTESTANTS:
        assert bench.find_contestants(name) == [name]
        assert bench.find_contestants(name.upper().replace(", ", ",")) == [name]
    assert bench.find_contestants(",".join(reversed(bench.CONTESTANTS))) == list(reversed(bench.CONTESTANTS))
    kinds = {kind for kind, _ in bench.CONTESTANTS.values()}
    assert {bench.CONTESTANTS[name][0] for name in bench.find_contestants(", ".join(kinds))} == kinds
    assert bench.find_contestants("m3dm,M3DM , m3dm,two banks") == ["M3DM", "M3DM, two banks"]
    with pytest.raises(InputError, match=r"found 'Magic', 'two banks' \(did you mean 'm3dm,two banks'\?\)$"):
        bench.find_contestants("Magic,cfm,two banks")
    with pytest.raises(InputError, match="found none"):
        bench.find_contestants(" , ")


def test_a_method_that_cannot_run_is_named_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.make_method

    def without_timm(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "BTF":
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
