"""The blocked selection is the float64 textbook loop, whatever the block, the threads and the instruction set."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import mmad_bank as mb
from mmad_bank import _core
from mmad_bank.errors import InputError
from mmad_bank.ops import reference


def _inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((1500, 48)).astype(np.float32)
    outliers = normal.copy()
    outliers[11] *= 1e6
    outliers[500] *= 1e4
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return {
        "normal": normal,
        "duplicates": np.repeat(rng.standard_normal((90, 16)), 10, axis=0).astype(np.float32),
        "one-hot": np.eye(600, dtype=np.float32),
        "grid": rng.integers(0, 3, (1200, 5)).astype(np.float32),
        "line": np.arange(700, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32),
        "offset by 1e4": normal + np.float32(1e4),
        "scaled by 1e-3": normal * np.float32(1e-3),
        "unit norm": unit.astype(np.float32),
        "huge outliers": outliers,
        "zeros": np.zeros((40, 8), np.float32),
        "odd width": rng.standard_normal((400, 33)).astype(np.float32),
        "one column": rng.standard_normal((300, 1)).astype(np.float32),
        "two rows": rng.standard_normal((2, 5)).astype(np.float32),
        "one row": np.ones((1, 4), np.float32),
    }


INPUTS = _inputs()


@pytest.mark.parametrize("name", INPUTS)
def test_equals_the_textbook_loop(name: str) -> None:
    rows = torch.from_numpy(INPUTS[name])
    everything = len(rows) <= 900
    n_select = len(rows) if everything else len(rows) // 3
    start = len(rows) // 3
    expected = reference.k_center_greedy(rows, n_select, start=start)
    chosen = mb.ops.k_center_greedy(rows, n_select, start=start)
    assert torch.equal(chosen, expected)
    assert len(set(chosen.tolist())) == n_select


@pytest.mark.parametrize("name", ["normal", "duplicates", "grid", "huge outliers"])
@pytest.mark.parametrize("precision", ["float32", "half"])
@pytest.mark.parametrize("pool", [1, 5, 64, 5000])
@pytest.mark.parametrize("threads", [1, 3])
def test_does_not_depend_on_block_format_and_threads(name: str, precision: str, pool: int, threads: int) -> None:
    rows = INPUTS[name][:600]
    expected = reference.k_center_greedy(torch.from_numpy(rows), 200).numpy()
    chosen, _, _ = _core.k_center_greedy(rows, rows[:0], 200, 0, -1.0, pool, precision, threads, None)
    np.testing.assert_array_equal(chosen, expected)


SLOW = pytest.mark.slow  # each in a process of its own; two of four are enough at every run


@pytest.mark.parametrize("isa", ["generic", *(pytest.param(isa, marks=SLOW) for isa in ("avx2", "avx512", "amx"))])
def test_every_instruction_set_agrees(isa: str) -> None:
    """A set that this processor lacks falls back to the next lower one."""
    code = (
        "import torch, mmad_bank as mb; g = torch.Generator().manual_seed(3);"
        "x = torch.randn(500, 40, generator=g); print(mb.ops.k_center_greedy(x, 120).tolist())"
    )
    environment = {**os.environ, "MMAD_BANK_ISA": isa}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    rows = torch.randn(500, 40, generator=torch.Generator().manual_seed(3))
    assert out.stdout.strip() == str(reference.k_center_greedy(rows, 120).tolist())


def test_real_features(texture_features: np.ndarray) -> None:
    rows = torch.from_numpy(texture_features[:3000])
    assert torch.equal(mb.ops.k_center_greedy(rows, 200, start=17), reference.k_center_greedy(rows, 200, start=17))


def test_radii_and_covering_radius() -> None:
    rows = torch.from_numpy(INPUTS["normal"])
    coreset = mb.ops.k_center_greedy(rows, 50, return_radius=True)
    wide = rows.double()
    for i in (1, 2, 10, 49):
        to_earlier = (wide[coreset.indices[:i]] - wide[coreset.indices[i]]).norm(dim=1).min()
        assert float(coreset.radii[i]) == pytest.approx(float(to_earlier), rel=1e-6)
    assert coreset.radii[0] == float("inf")
    left = torch.cdist(wide, wide[coreset.indices]).min(dim=1).values.max()
    assert coreset.covering_radius == pytest.approx(float(left), rel=1e-6)
    assert bool((coreset.radii[1:] <= coreset.radii[:-1]).all())
    assert coreset.covering_radius <= float(coreset.radii[-1])


def test_half_precision_features_are_taken_as_they_are() -> None:
    rows = torch.from_numpy(INPUTS["normal"])
    for dtype in (torch.float16, torch.bfloat16):
        narrow = rows.to(dtype)
        assert torch.equal(mb.ops.k_center_greedy(narrow, 60), reference.k_center_greedy(narrow.float(), 60))


def test_non_contiguous_rows() -> None:
    rows = torch.from_numpy(INPUTS["normal"])
    assert torch.equal(mb.ops.k_center_greedy(rows[::2, ::3], 40), reference.k_center_greedy(rows[::2, ::3], 40))


def _textbook_extension(rows: torch.Tensor, bank: torch.Tensor, radius: float, limit: int) -> list[int]:
    wide = rows.double()
    nearest = torch.stack([(wide - center).square().sum(1) for center in bank.double()]).min(dim=0).values
    chosen: list[int] = []
    while len(chosen) < limit and float(nearest.max()) > radius * radius:
        chosen.append(int((nearest == nearest.max()).int().argmax()))
        nearest = torch.minimum(nearest, (wide - wide[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = -1.0
    return chosen


@pytest.mark.parametrize(("radius", "limit"), [(0.0, 40), (8.0, 700), (1e9, 10), (0.0, 0)])
def test_extension_continues_the_loop(radius: float, limit: int) -> None:
    rows, bank = torch.from_numpy(INPUTS["normal"][:700]), torch.from_numpy(INPUTS["normal"][700:760])
    grown = mb.ops.extend_coreset(rows, bank, radius=radius, n_select=limit)
    assert grown.indices.tolist() == _textbook_extension(rows, bank, radius, limit)
    left = torch.cdist(rows.double(), torch.cat([bank, rows[grown.indices]]).double()).min(dim=1).values.max()
    assert grown.covering_radius == pytest.approx(float(left), rel=1e-6)


def test_extension_leaves_copies_out() -> None:
    rows = torch.from_numpy(INPUTS["duplicates"])
    assert mb.ops.extend_coreset(rows, rows[::10]).indices.tolist() == []
    assert mb.ops.extend_coreset(rows, rows[::20]).indices.shape == (45,)


def test_progress_is_reported_and_can_stop_the_selection() -> None:
    rows = torch.from_numpy(INPUTS["normal"])
    seen: list[tuple[int, int]] = []
    mb.ops.k_center_greedy(rows, 300, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300, 300)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mb.ops.k_center_greedy(rows, 300, progress=stop)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (torch.zeros(3), {"n_select": 1}, "features: expected 2-D array, found shape (3,)"),
        (torch.zeros(0, 4), {"n_select": 1}, "features: expected at least one row and one column, found shape (0, 4)"),
        (
            torch.zeros(3, 4, dtype=torch.int64),
            {"n_select": 1},
            "features: expected floating-point values, found torch.int64",
        ),
        (
            np.zeros((3, 4), np.uint8),
            {"n_select": 1},
            "features: expected floating-point values, found NumPy dtype uint8",
        ),
        ([[1.0]], {"n_select": 1}, "features: expected a torch.Tensor or a NumPy array, found list"),
        (torch.zeros(3, 4), {"n_select": 4}, "n_select: expected 1 to 3 (the number of rows), found 4"),
        (torch.zeros(3, 4), {"n_select": 0}, "n_select: expected 1 to 3 (the number of rows), found 0"),
        (torch.zeros(3, 4), {"n_select": 1.0}, "n_select: expected an integer, found 1.0"),
        (torch.zeros(3, 4), {"n_select": 1, "start": 3}, "start: expected 0 to 2 (the row numbers), found 3"),
        (
            torch.tensor([[0.0], [float("nan")], [1.0]]),
            {"n_select": 1},
            "features: row 1 holds NaN or infinity; expected finite values",
        ),
        (
            torch.tensor([[0.0], [1.0], [float("-inf")]]),
            {"n_select": 1},
            "features: row 2 holds NaN or infinity; expected finite values",
        ),
        (torch.tensor([[0.0], [1.0], [2.0], [3.0], [1e20]]), {"n_select": 1}, "features: row 4 has a norm above 1e18"),
    ],
)
def test_bad_input_is_named(rows: object, arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        mb.ops.k_center_greedy(rows, **arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
