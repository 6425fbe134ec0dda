"""What a selection over workers is expected to cost."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused
from typer.testing import CliRunner

from mmad_bank.cli import app
from mmad_bank.distributed.pace import Pace, measure_pace
from mmad_bank.distributed.planning import enough, plan
from mmad_bank.errors import FormatError, InputError

PACE = Pace("a machine", 64, 2, 100_000, 10_000, 2e-7, 4e-6, 0.5, 0.2, 0.8, 90, 60, 20, 0.4)


def test_work_of_the_rows_is_shared_and_that_of_the_coordinator_is_not() -> None:
    one, many = (plan(PACE, 10**8, 10_000, workers) for workers in (1, 50))
    for name in ("read", "prepare", "meet"):
        assert math.isclose(getattr(one, name), 50 * getattr(many, name))
    assert one.choose == many.choose == PACE.choose
    assert many.network > one.network


def test_machines_are_sent_a_centre_once() -> None:
    alone, together = (plan(PACE, 10**8, 10_000, 32, machines=machines) for machines in (None, 2))
    assert math.isclose(alone.network - together.network, 30 * 10_000 * (4 * 64 + 8) / 1.25e9)
    assert (alone.up, alone.down) == (together.up, together.down)


def test_growth_follows_the_measured_exponents() -> None:
    one, more = (plan(PACE, 10**8, size, 4) for size in (10_000, 40_000))
    assert math.isclose(more.meet, one.meet * 4**PACE.meet_exponent)
    assert math.isclose(more.choose, one.choose * 4**PACE.choose_exponent)
    assert more.blocks == math.ceil(20 * 4**0.4)


@pytest.mark.parametrize("seconds", [500.0, 60.0, 9.0, 4.0])
def test_enough_is_the_smallest_number_that_is(seconds: float) -> None:
    found = enough(PACE, 10**8, 10_000, seconds)
    assert found is not None
    assert found.seconds <= seconds
    if found.workers > 1:
        assert plan(PACE, 10**8, 10_000, found.workers - 1).seconds > seconds


def test_no_number_of_workers_makes_the_coordinator_faster() -> None:
    assert enough(PACE, 10**8, 10_000, 0.1) is None


def test_scratch_files_take_rows_and_copies_from_memory() -> None:
    inside, outside = (plan(PACE, 10**7, 1000, 2, scratch=scratch) for scratch in (False, True))
    own_centers, read_ahead = 500 * 4 * 64, 64 << 20
    assert inside.memory + own_centers + read_ahead == outside.memory + outside.scratch
    assert outside.scratch == 5_000_000 * (4 + 2) * 64


@pytest.mark.parametrize("dim", [64, 256])
def test_memory_is_what_a_shard_takes(dim: int) -> None:
    """A process of its own, for its peak."""
    program = f"""
import numpy as np, torch
from mmad_bank.ops.k_center_shards import KCenterCoordinator, KCenterShard
def held():
    text = open("/proc/self/status").read()
    return int(text.split("VmHWM:")[1].split()[0]) << 10
rng = np.random.default_rng(0)
rows = torch.empty(300_000, {dim})
inner = torch.from_numpy(rng.standard_normal((300_000, 4), dtype=np.float32))
torch.matmul(inner, torch.from_numpy(rng.standard_normal((4, {dim}), dtype=np.float32)), out=rows)
rows += 0.01
before = held() - rows.nbytes
shard, coordinator = KCenterShard(rows, n_centers=500), KCenterCoordinator(len(rows), 500)
shard.meet(rows[:1], own=torch.tensor([0]))
while coordinator.covering_radius is None:
    coordinator.offer(shard.rise(coordinator.bar, coordinator.wanted))
    if coordinator.join() and not coordinator.complete:
        known = len(coordinator.rows)
        coordinator.pick(rows[coordinator.pool])
        new = coordinator.rows_from(known)
        shard.meet(rows[new], own=new)
        shard.settle(coordinator.pool, coordinator.values)
print(held() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("peaks are read from /proc")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = plan(replace(PACE, dim=dim), 300_000, 500, 1).memory - (350 << 20)
    assert 0.8 < int(done.stdout) / expected < 1.2


def test_a_pace_is_measured_and_predicts_what_it_has_measured() -> None:
    rows = torch.randn(20_000, 24, generator=torch.Generator().manual_seed(0))
    pace = measure_pace(24, 10_000, threads=1, features=rows)
    assert (pace.dim, pace.threads, pace.rows, pace.picks) == (24, 1, 20_000, 1250)
    found = plan(pace, pace.rows, pace.picks, 1)
    assert math.isclose(found.meet, pace.meet * pace.rows)
    assert found.blocks == pace.blocks
    assert 0.2 <= pace.meet_exponent <= 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"dim": 0}, "dim"),
        ({"size": 0}, "size"),
        ({"features": torch.zeros(10, 24)}, "features"),
        ({"n_rows": -5}, "n_rows"),
        ({"projected_from": 0}, "projected_from"),
        ({"threads": 10**8}, "threads"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: "):
        measure_pace(**{"dim": 24, "size": 5, **arguments})


@pytest.mark.parametrize(
    ("n_rows", "size", "disk_rate", "cache"),
    [
        (10**8, 10_000, 1e9, 0),
        (10**8, 10_000, 1e8, 0),
        (58_897, 17_034, 1e7, 0),
        (10**6, 1000, 1e7, 10**8),
        (7, 3, 1e3, 0),
    ],
)
def test_enough_is_the_fewest_workers_with_scratch_files_too(
    n_rows: int, size: int, disk_rate: float, cache: int
) -> None:
    for settings in ({}, {"scratch": True, "disk_rate": disk_rate, "cache": cache}):
        taken = [plan(PACE, n_rows, size, workers, **settings).seconds for workers in range(1, 101)]
        for limit in (taken[0], taken[1], taken[2] * 1.001, taken[40], min(taken), min(taken) * 0.9):
            fewest = next((number for number, one in enumerate(taken, 1) if one <= limit), None)
            found = enough(PACE, n_rows, size, limit, most=100, **settings)
            assert (None if found is None else found.workers) == fewest


@pytest.mark.parametrize("name", ["disk_rate", "scratch_rate", "bandwidth", "round_trip"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, True, "1GB"])
def test_rates_that_are_none_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected a number"):
        plan(PACE, 10**6, 1000, 4, scratch=True, **{name: value})
    assert plan(PACE, 10**6, 1000, 4, round_trip=0.0).seconds > 0


@pytest.mark.parametrize(
    ("name", "value"), [("machines", 0), ("machines", 1.5), ("row_bytes", -8), ("cache", -1), ("bandwidth", 0)]
)
def test_numbers_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected"):
        plan(PACE, 10**6, 1000, 4, **{name: value})


def test_many_passes_are_looked_at_many_at_a_time() -> None:
    """The wait for a disk hardly depends on how finely passes are told apart, and a plan of any number is made."""
    waits = {}
    for passes in (400, 4096, 40_960, 10**15):
        one = replace(PACE, passes=passes, blocks_exponent=0.4)
        found = plan(one, 10**8, PACE.picks, 4, scratch=True, disk_rate=1e9 * passes, scratch_rate=1e7 * passes)
        waits[passes] = found.reread
    assert all(wait == pytest.approx(waits[4096], rel=0.02) for wait in waits.values())
    assert waits[4096] > 0


def test_no_more_rows_are_measured_than_there_are() -> None:
    assert measure_pace(8, 1000, threads=1, n_rows=60_000).rows == 60_000


def test_a_pace_is_kept_in_a_file(tmp_path: Path) -> None:
    PACE.save(tmp_path / "pace.json")
    assert Pace.load(tmp_path / "pace.json") == PACE
    with pytest.raises(InputError, match=r"gone\.json: cannot be read"):
        Pace.load(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "change",
    [
        {"meet": "much"},
        {"dim": 0},
        {"choose": math.nan},
        {"rows": 1.5},
        {"blocks": 10**400},
        {"blocks_exponent": 400.0},
        {"meet": 1e308},
        None,
    ],
)
def test_other_files_are_refused(change: dict[str, Any] | None, tmp_path: Path) -> None:
    (tmp_path / "pace.json").write_text(json.dumps([] if change is None else {**asdict(PACE), **change}))
    with pytest.raises(FormatError, match=r"pace\.json: it does not hold a pace"):
        Pace.load(tmp_path / "pace.json")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_command_plans_by_a_saved_pace(tmp_path: Path) -> None:
    PACE.save(tmp_path / "pace.json")
    common = ["--rows", "1e8", "--dim", "64", "--bank-size", "10000", "--pace", str(tmp_path / "pace.json")]
    found = json.loads(run(*common, "--workers", "8", "--within", "1m", "--json").stdout)
    (one,) = found["plans"]
    assert one["workers"] == 8
    assert math.isclose(one["meet"], 50.0)
    assert found["within"] == {"seconds": 60.0, "workers": 8}
    text = run(*common).stdout
    assert "10,000 of 100,000,000 rows of 64" in text
    table = [line.split() for line in text.splitlines() if line.startswith(" ")]
    assert [
        "plan",
        "workers",
        "time",
        "read",
        "prepare",
        "meet",
        "choose",
        "network",
        "memory",
        "sends",
        "gets",
    ] in table
    assert "doubts" not in text
    assert "program" in text
    assert [line[0] for line in table if line[0].isdigit()] == ["1", "2", "4", "8", "16", "32", "64"]


def test_a_plan_far_beyond_what_was_measured_says_so(tmp_path: Path) -> None:
    PACE.save(tmp_path / "pace.json")
    text = run("--rows", "1e9", "--dim", "64", "--bank-size", "1000000", "--pace", str(tmp_path / "pace.json")).stdout
    assert "100 times as many vectors as were measured: if the growth is off by 0.1, meet is 1.6 times" in " ".join(
        text.split()
    )


def test_the_command_says_what_a_saved_pace_leaves_no_choice_of(tmp_path: Path) -> None:
    PACE.save(tmp_path / "pace.json")
    common = ["--rows", "1e8", "--dim", "64", "--pace", str(tmp_path / "pace.json")]
    assert "within" not in run(*common, "--within", "none").stdout
    result = run(*common, "--threads", "7")
    assert result.exit_code == 2
    assert f"--threads: expected {PACE.threads}, which" in result.stderr


def test_scratch_files_are_read_again_and_again() -> None:
    files = plan(PACE, 10**8, 10_000, 2, scratch=True)
    rounding, passes = 50_000_000 * 4 * 64 / 1e9, 60 * 50_000_000 * 6 * 64 / 1e9
    # All passes wait for a disk that is slow beside the arithmetic, none for one that is fast.
    slow = plan(PACE, 10**8, 10_000, 2, scratch=True, scratch_rate=1e8)
    assert math.isclose(slow.meet + slow.reread, rounding + 10 * passes)
    assert math.isclose(plan(PACE, 10**8, 10_000, 2, scratch=True, scratch_rate=1e12).reread, rounding)
    both = plan(PACE, 10**8, 10_000, 2, scratch=True, scratch_rate=8e9)
    assert max(0.0, passes / 8 - both.meet) < both.reread - rounding < passes / 8
    assert files.seconds == files.read + files.prepare + files.meet + files.reread + files.choose + files.network
    assert plan(PACE, 10**8, 10_000, 2, scratch=True, cache=files.scratch).reread == 0.0
    half = plan(PACE, 10**8, 10_000, 2, scratch=True, scratch_rate=1e8, cache=files.scratch // 2)
    assert math.isclose(half.meet + half.reread, rounding + 5 * passes)


def test_the_command_measures_with_features(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "features.npy", np.random.default_rng(0).standard_normal((4000, 40), dtype=np.float32))
    arguments = [str(tmp_path / "features.npy"), "--projection-dim", "10", "--save-pace", str(tmp_path / "pace.json")]
    found = json.loads(run(*arguments, "--workers", "2", "--json").stdout)
    assert (found["plans"][0]["rows"], found["plans"][0]["size"], found["plans"][0]["dim"]) == (4000, 400, 10)
    assert Pace.load(tmp_path / "pace.json").dim == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "1e9"], "--rows and --dim: expected both"),
        (
            ["--rows", "many", "--dim", "8"],
            "--rows: expected a whole number above 0 such as 1000000 or 1e9, found 'many'",
        ),
        (["--rows", "1e3", "--dim", "0"], "--dim: "),
        (["--rows", "1e3", "--dim", "8", "--network", "0"], "--network: expected gigabits per second"),
        (["--rows", "1e3", "--dim", "8", "--network", "1e-323"], "--network: expected gigabits per second"),
        (["--rows", "1e3", "--dim", "8", "--disk", "9" * 400 + "GB"], "--disk: expected a size"),
        (["--rows", "1e3", "--dim", "8", "--bank-size", "2000"], "size: expected"),
        (["--rows", "1e3", "--dim", "8", "--bank-size", "20", "--ratio", "1%"], "--ratio and --bank-size"),
        (["--rows", "1e3", "--dim", "8", "--workers", "2", "--machines", "4"], "--machines: expected at most 2"),
        (["--rows", "1e3", "--dim", "8", "--threads", "99999999"], "--threads: expected 1 to 65536"),
        (["--rows", "9e15", "--dim", "8"], "--rows: expected 1 to"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], said: str) -> None:
    assert said in refused("plan", *arguments)
