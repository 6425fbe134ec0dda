"""Selection over shards: the rows of one machine's selection, whatever holds them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_loop import parts_of, select_over, squared_in_one_order
from torch import Tensor

from mmad_bank import ops
from mmad_bank.errors import InputError
from mmad_bank.ops import k_center_shards
from mmad_bank.ops._torch.k_center_shards import TorchCoordinator, TorchShard
from mmad_bank.ops.k_center_shards import KCenterCoordinator, KCenterShard


def reference_shard(features: Tensor, *, n_centers: int) -> KCenterShard:
    """Return a shard that PyTorch computes."""
    shard = KCenterShard(features, n_centers=n_centers)
    shard._kernel = TorchShard(features)
    return shard


class CountingCoordinator(KCenterCoordinator):
    """Counts how often shards have to rise."""

    rises = 0

    def join(self) -> bool:
        """Count a rise."""
        self.rises += 1
        return super().join()


IMPLEMENTATIONS = {"native": (KCenterShard, KCenterCoordinator), "reference": (reference_shard, TorchCoordinator)}
both = pytest.mark.parametrize(("shard_type", "coordinator_type"), IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def run(
    features: Tensor,
    sizes: list[int],
    coordinator: Any,
    n_centers: int,
    earlier: Tensor | None = None,
    shard_type: Any = KCenterShard,
) -> Any:
    """Select over shards of these sizes, with the loop of whoever owns them."""
    shards = [shard_type(part, n_centers=n_centers) for part in parts_of(features, sizes)]
    return select_over(shards, features, coordinator, earlier)


def cut(n_rows: int, n_shards: int, seed: int) -> list[int]:
    """Return uneven sizes of shards; of seven, one is empty."""
    places = torch.randint(0, n_rows + 1, (n_shards - 1,), generator=torch.Generator().manual_seed(seed)).sort()[0]
    if n_shards == 7:
        places[3] = places[2]
    return torch.diff(torch.tensor([0, *places.tolist(), n_rows])).tolist()


def table(kind: str, seed: int) -> Tensor:
    """Return features whose selection is hard in one way or another."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return torch.randn(900, 70, generator=generator)
    if kind == "ties":
        return torch.randn(800, 6, generator=generator).round()
    if kind == "duplicates":
        return torch.randn(150, 16, generator=generator).repeat(4, 1)
    spread = 0.9 ** torch.arange(256.0)  # few directions hold nearly all: the coarse screen is used
    return torch.randn(1500, 256, generator=generator) * spread


KINDS = ("noise", "ties", "duplicates", "low rank")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_shards", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_picks_are_those_of_one_array(kind: str, n_shards: int, seed: int) -> None:
    features = table(kind, seed)
    for n_select in (1, 2, len(features) // 5, len(features)):
        expected = ops.k_center_greedy(features, n_select, start=7, return_radius=True)
        coordinator = KCenterCoordinator(len(features), n_select, start=7)
        found = run(features, cut(len(features), n_shards, seed), coordinator, n_select)
        assert torch.equal(found.rows, expected.indices)
        assert torch.equal(found.radii.float(), expected.radii)
        assert found.covering_radius == expected.covering_radius
        assert found.complete


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_shards", [1, 3, 7])
@pytest.mark.parametrize(("radius", "n_select"), [(None, 60), (3.0, None), (0.5, 90), (0.0, 0), (math.inf, None)])
def test_extensions_are_those_of_one_array(
    kind: str, n_shards: int, radius: float | None, n_select: int | None
) -> None:
    features = table(kind, 0)
    earlier = table(kind, 1)[:20]
    expected = ops.extend_coreset(features, earlier, radius=radius, n_select=n_select)
    count = len(features) if n_select is None else n_select
    coordinator = KCenterCoordinator(len(features), count, n_earlier=20, radius=0.0 if radius is None else radius)
    found = run(features, cut(len(features), n_shards, 0), coordinator, 20 + count, earlier)
    assert torch.equal(found.rows, expected.indices)
    assert found.covering_radius == expected.covering_radius


def test_rows_of_several_parts_are_brought_up_to_date() -> None:
    """A million rows are a part."""
    features = torch.rand(1_200_000, 3, generator=torch.Generator().manual_seed(0))
    nearest, picks = torch.full((len(features),), math.inf, dtype=torch.float64), [0]
    for _ in range(11):
        nearest = torch.minimum(nearest, (features.double() - features[picks[-1]].double()).square().sum(1))
        picks.append(int(nearest.argmax()))
    found = run(features, [len(features)], KCenterCoordinator(len(features), 12), 12)
    assert found.rows.tolist() == picks


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_shards", [1, 2, 3, 7])
def test_the_reference_agrees_with_the_native_core(
    kind: str, n_shards: int, shard_type: Any, coordinator_type: Any
) -> None:
    features = table(kind, 3)[:200]
    sizes = cut(len(features), n_shards, 3)
    for n_select in (1, 2, 40, len(features)):
        expected = ops.k_center_greedy(features, n_select, start=7, return_radius=True)
        coordinator = coordinator_type(len(features), n_select, start=7)
        found = run(features, sizes, coordinator, n_select, shard_type=shard_type)
        assert torch.equal(found.rows, expected.indices)
        assert torch.allclose(found.radii.float(), expected.radii)
        assert found.covering_radius == pytest.approx(expected.covering_radius)
        assert found.complete


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("radius", "n_select"), [(None, 30), (3.0, None), (0.5, 50), (0.0, 0), (math.inf, None)])
def test_the_reference_extends_as_the_native_core(
    kind: str, radius: float | None, n_select: int | None, shard_type: Any, coordinator_type: Any
) -> None:
    features, earlier = table(kind, 3)[:200], table(kind, 1)[:20]
    expected = ops.extend_coreset(features, earlier, radius=radius, n_select=n_select)
    count = len(features) if n_select is None else n_select
    coordinator = coordinator_type(len(features), count, n_earlier=20, radius=0.0 if radius is None else radius)
    found = run(features, cut(len(features), 3, 0), coordinator, 20 + count, earlier, shard_type)
    assert torch.equal(found.rows, expected.indices)
    assert found.covering_radius == pytest.approx(expected.covering_radius)


@pytest.mark.parametrize("pool", [1, 2, 17, 5000])
def test_pools_of_any_size_give_the_same_picks(pool: int) -> None:
    features = table("noise", 4)
    coordinator = KCenterCoordinator(len(features), 100, pool=pool)
    assert torch.equal(run(features, [400, 500], coordinator, 100).rows, ops.k_center_greedy(features, 100))


def test_a_shard_that_is_made_anew_and_meets_all_centres_goes_on() -> None:
    features = table("low rank", 5)
    rows = ops.k_center_greedy(features, 300)
    values = torch.cdist(features.double(), features[rows].double()).min(1)[0].square()
    shard = KCenterShard(features, n_centers=300)
    shard.meet(features[rows], own=rows)
    found = shard.rise(0.0, at_most=5)
    expected = values.sort(descending=True)[0][:5]
    assert torch.allclose(found.squared.sort(descending=True)[0], expected)
    assert found.above == len(features) - 300
    assert found.below == 0.0


def test_candidates_are_the_farthest_and_the_lowest_of_equal_ones() -> None:
    shard = KCenterShard(torch.tensor([[2.0], [1.0], [-2.0], [2.0], [0.5]]), n_centers=1)
    shard.meet(torch.zeros(1, 1))
    squared, rows, above, below = shard.rise(0.5, at_most=2)
    assert (squared.tolist(), sorted(rows.tolist()), above, below) == ([4.0, 4.0], [0, 2], 4, 0.25)


@pytest.mark.parametrize("dim", [1, 3, 31, 32, 33, 200])
def test_values_are_summed_in_one_order_on_every_processor(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    features, center = torch.randn(100, dim, generator=generator), torch.randn(dim, generator=generator)
    shard = KCenterShard(features, n_centers=1)
    shard.meet(center[None])
    squared, rows, _, _ = shard.rise(0.0, at_most=100)
    assert torch.equal(squared, squared_in_one_order(features, center)[rows])


def test_bad_rows_are_named() -> None:
    features = torch.zeros(5, 3)
    features[3, 1] = math.nan
    with pytest.raises(InputError, match=r"^features: .*row 3"):
        KCenterShard(features, n_centers=1)
    shard = KCenterShard(torch.zeros(5, 3), n_centers=1)
    with pytest.raises(InputError, match=r"^centers: .*row 0"):
        shard.meet(torch.full((1, 3), math.inf))


def test_what_a_shard_does_not_have_is_refused() -> None:
    shard = KCenterShard(torch.zeros(5, 3), n_centers=2)
    with pytest.raises(InputError, match=r"^own: expected -1 to 4 \(the rows of the shard\), found 5 to 5"):
        shard.meet(torch.zeros(1, 3), own=torch.tensor([5]))
    with pytest.raises(InputError, match=r"^own: expected one row for each of 2 centers, found 1"):
        shard.meet(torch.zeros(2, 3), own=torch.tensor([1]))
    with pytest.raises(InputError, match=r"^centers: expected 3 columns as in the features, found \(1, 4\)"):
        shard.meet(torch.zeros(1, 4))
    with pytest.raises(InputError, match=r"^rows: expected 0 to 4 \(the rows of the shard\), found -1 to 4"):
        shard.settle(torch.tensor([4, -1]), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(InputError, match=r"^rows: expected row numbers, int64 \(n,\), found torch.float32 \(1,\)"):
        shard.settle(torch.tensor([4.0]), torch.zeros(1, dtype=torch.float64))
    with pytest.raises(InputError, match=r"^squared: expected a value for each of 1 rows, found \(2,\)"):
        shard.settle(torch.tensor([4]), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_pytorch_take_part(kind: str) -> None:
    """Those of devices without kernels: here beside the core's, on the CPU."""
    features = table(kind, 2)
    n_select = len(features) // 6
    shards = [KCenterShard(part, n_centers=n_select) for part in parts_of(features, cut(len(features), 3, 2))]
    for shard in shards[:2]:
        shard._kernel = k_center_shards._on_device(shard._features, n_select, torch.device("cpu"))
        assert isinstance(shard._kernel, TorchShard)
    found = select_over(shards, features, KCenterCoordinator(len(features), n_select, start=5))
    expected = ops.k_center_greedy(features, n_select, start=5, return_radius=True)
    assert torch.equal(found.rows, expected.indices)
    assert torch.equal(found.radii.float(), expected.radii)
    assert found.covering_radius == expected.covering_radius


@pytest.mark.parametrize("dim", [1, 40])
def test_shards_of_pytorch_answer_as_the_core_does(dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    features, centers = torch.randn(100, dim, generator=generator), torch.randn(3, dim, generator=generator)
    features[60:], centers[1] = features[:40].clone(), features[7]
    answers = []
    for kernel in (TorchShard(features), KCenterShard(features, n_centers=3)._kernel):
        kernel.meet(centers, torch.tensor([-1, 7, -1]))
        kernel.settle(torch.tensor([0.25, -1.0], dtype=torch.float64), torch.tensor([3, 4]))
        bar = float(kernel.rise(0.0, 100)[0].sort().values[30])
        answers.append([kernel.rise(bar, 100), kernel.rise(bar, 9), kernel.rise(1e9, 4)])
    for found, expected in zip(*answers, strict=True):
        order, expected_order = found[1].argsort(), expected[1].argsort()
        assert torch.equal(found[0][order], expected[0][expected_order])
        assert torch.equal(found[1][order], expected[1][expected_order])
        assert found[2:] == expected[2:]


@pytest.mark.parametrize(
    "features", [torch.zeros(5), torch.zeros(5, 3, dtype=torch.float64), torch.zeros(3, 5).T, torch.zeros(5, 3).half()]
)
def test_rows_of_another_kind_are_refused(features: Tensor) -> None:
    with pytest.raises(InputError, match=r"^features: expected contiguous float32 rows \(N, D\), found torch"):
        KCenterShard(features, n_centers=1)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n_select": 0}, "n_select"),
        ({"n_select": 11}, "n_select"),
        ({"n_select": 3, "start": 10}, "start"),
        ({"n_select": 3, "threads": 0}, "threads"),
    ],
)
def test_numbers_out_of_range_are_named(arguments: dict[str, int], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: "):
        KCenterCoordinator(10, **arguments)


def test_more_centers_than_announced_are_refused() -> None:
    features = table("noise", 0)
    shard = KCenterShard(features, n_centers=3)
    shard.meet(features[:2])
    with pytest.raises(InputError, match=r"^centers: expected at most 3 in all \(n_centers\), found 4$"):
        shard.meet(features[2:4])
    shard.meet(features[2:3])
    assert shard.rise(0.0, 1).above == len(features)


@pytest.mark.parametrize("kind", KINDS)
def test_picks_do_not_depend_on_the_steps_of_the_bar(kind: str) -> None:
    features = table(kind, 4)
    n_select = len(features)
    expected = ops.k_center_greedy(features, n_select, return_radius=True)
    for sinking, pool in ((0.0, 0), (0.0, 300), (0.93, 300), (0.01, 8)):
        coordinator = KCenterCoordinator(n_select, n_select, sinking=sinking, pool=pool)
        found = run(features, [n_select], coordinator, n_select)
        assert torch.equal(found.rows, expected.indices)
        assert torch.equal(found.radii.float(), expected.radii)


def test_steps_by_how_values_thin_out_take_few_rises() -> None:
    """Values of many directions thin out fast: steps that are too large bring all rows up to date."""
    features = torch.randn(40_000, 24, generator=torch.Generator().manual_seed(0))
    taken = []
    for sinking in (0.0, 0.93, 0.5):
        shard, coordinator = (
            KCenterShard(features, n_centers=600),
            CountingCoordinator(40_000, 600, pool=256, sinking=sinking),
        )
        select_over([shard], features, coordinator)
        taken.append((coordinator.rises, shard.updates))
    (rises, updates), (many, _), (_, dear) = taken
    assert rises < 0.75 * many
    assert updates < 0.75 * dear


@pytest.mark.parametrize("kind", ["noise", "low rank"])
def test_a_scratch_folder_holds_the_rounded_rows_and_nothing_that_is_left(kind: str, tmp_path: Path) -> None:
    features = table(kind, 2)
    found = []
    for scratch in (None, tmp_path):
        shard = KCenterShard(features, n_centers=50, scratch=scratch)
        rows = ops.k_center_greedy(features, 50)
        shard.meet(features[rows], own=rows)
        squared, far, above, below = shard.rise(0.0, at_most=len(features))
        found.append((squared[far.argsort()].tolist(), far.sort()[0].tolist(), above, below))
        mapped = Path("/proc/self/maps")
        if mapped.exists():
            assert (str(tmp_path) in mapped.read_text()) == (scratch is not None)
        assert list(tmp_path.iterdir()) == []
    assert found[0] == found[1]


def test_a_scratch_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^scratch: .*gone: cannot hold a scratch file of 1 MB \(No such file"):
        KCenterShard(table("noise", 0), n_centers=1, scratch=tmp_path / "gone")


def test_a_pool_of_rows_that_are_too_long_is_refused() -> None:
    coordinator = KCenterCoordinator(2, 2)
    offered = k_center_shards.Candidates(torch.ones(2, dtype=torch.float64), torch.tensor([0, 1]), 2, 0.0)
    coordinator.offer(offered)
    while not coordinator.join():
        coordinator.offer(offered)
    with pytest.raises(InputError, match=r"^features: row 0 has a norm above 1e18"):
        coordinator.pick(torch.tensor([[2e19, 0.0], [0.0, 1.0]]))
