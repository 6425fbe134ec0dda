from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mmad_bank import MemoryBank, ops
from mmad_bank.bank import dumps
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.scores import _neighborhood
from mmad_bank.bank.selection import selection_space
from mmad_bank.errors import InputError


def features(n=300, dim=12, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def brute_force(queries, vectors, k):
    queries, vectors = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    distances = np.linalg.norm(queries[:, None] - vectors[None], axis=-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


def textbook(rows, n_select, start=0):
    rows = np.asarray(rows, np.float64)
    nearest = np.full(len(rows), np.inf)
    picks = [start]
    while len(picks) < n_select:
        nearest = np.minimum(nearest, ((rows - rows[picks[-1]]) ** 2).sum(1))
        nearest[picks[-1]] = -1
        picks.append(int(nearest.argmax()))
    remaining = np.minimum(nearest, ((rows - rows[picks[-1]]) ** 2).sum(1))
    remaining[picks] = 0
    return picks, float(np.sqrt(max(remaining.max(), 0)))


class TestBuild:
    def test_is_the_greedy_selection(self):
        rows = features()
        bank = MemoryBank.build(rows, ratio=0.1, start=5)
        picks, radius = textbook(rows, 30, start=5)
        assert bank.source_rows.tolist() == picks
        assert torch.equal(bank.vectors, rows[picks])
        assert bank.radius == pytest.approx(radius, rel=1e-6)
        assert (len(bank), bank.dim, bank.source_rows.dtype) == (30, 12, torch.int64)

    @pytest.mark.parametrize(
        ("ratio", "size", "expected"), [(0.1, None, 29), (0.001, None, 1), (1.0, None, 299), (0.5, 7, 7)]
    )
    def test_number_of_vectors(self, ratio, size, expected):
        assert len(MemoryBank.build(features(299), ratio, size=size)) == expected

    def test_all_rows_leave_no_radius(self):
        bank = MemoryBank.build(features(20), ratio=1)
        assert bank.radius == 0.0
        assert sorted(bank.source_rows.tolist()) == list(range(20))

    def test_selects_in_the_projected_space_and_keeps_whole_vectors(self):
        rows = features(200, 40)
        bank = MemoryBank.build(rows, size=20, projection_dim=9, seed=4)
        projected = SparseProjection(40, 9, seed=4)(rows)
        picks, radius = textbook(projected, 20)
        assert bank.source_rows.tolist() == picks
        assert torch.equal(bank.vectors, rows[picks])
        assert bank.radius == pytest.approx(radius, rel=1e-6)
        assert MemoryBank.build(rows, size=20, projection_dim=9, seed=5).source_rows.tolist() != picks

    def test_auto_projection(self):
        bank = MemoryBank.build(features(50, 200), size=5, projection_dim="auto")
        assert bank.projection.dim_out == int(4 * np.log(50) / (0.405 - 0.243)) == 96

    @pytest.mark.parametrize("projection_dim", [None, 5])
    def test_streaming_does_not_change_the_bank(self, tmp_path, monkeypatch, projection_dim):
        rows = features(210, 12).reshape(30, 7, 12)
        whole = MemoryBank.build(rows, size=20, projection_dim=projection_dim)
        for part in range(3):
            np.save(tmp_path / f"{part}.npy", rows[10 * part : 10 * part + 10].numpy())
        monkeypatch.setattr(dumps, "_BLOCK_BYTES", 11 * 12 * 4)
        streamed = MemoryBank.build(tmp_path, size=20, projection_dim=projection_dim)
        assert torch.equal(streamed.vectors, whole.vectors)
        assert torch.equal(streamed.source_rows, whole.source_rows)
        assert streamed.radius == whole.radius
        origin = streamed.provenance([3])[0]
        row = int(whole.source_rows[3])
        assert origin.file == str(tmp_path / f"{row // 70}.npy")
        assert (origin.row, origin.image, origin.patch) == (row % 70, row % 70 // 7, row % 7)
        assert torch.equal(torch.from_numpy(np.load(origin.file))[origin.image, origin.patch], streamed.vectors[3])

    def test_duplicates_fill_the_bank_without_taking_a_row_twice(self):
        bank = MemoryBank.build(torch.ones(10, 3), size=8)
        assert len(set(bank.source_rows.tolist())) == 8
        assert bank.radius == 0.0

    def test_zero_vectors_and_half_precision(self):
        rows = torch.cat([torch.zeros(5, 4), features(20, 4)]).half()
        bank = MemoryBank.build(rows, size=6)
        assert bank.vectors.dtype == torch.float32
        assert bank.source_rows.tolist() == textbook(rows.float(), 6)[0]

    def test_progress_reports_every_stage(self):
        calls = []
        MemoryBank.build(features(), size=5, progress=lambda *call: calls.append(call))
        assert ("Reading features", 300, 300) in calls
        assert [call for call in calls if call[0] == "Selecting the coreset"][-1][1:] == (5, 5)
        MemoryBank.build(features(), size=5, progress=True)  # no terminal: silent

    def test_progress_shows_a_bar_a_stage(self, monkeypatch):
        shown = []

        @contextmanager
        def bar(stage, total):
            shown.append(("open", stage, total))
            yield lambda done: None
            shown.append(("close", stage, total))

        monkeypatch.setattr("mmad_bank.bank.reporting.progress_bar", bar)
        MemoryBank.build(features(), size=5, progress=True)
        stages = [("Reading features", 300), ("Selecting the coreset", 5)]
        assert shown == [(what, *stage) for stage in stages for what in ("open", "close")]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"ratio": 0}, "ratio: expected more than 0"),
            ({"ratio": 1.5}, "ratio: expected more than 0"),
            ({"ratio": float("nan")}, "ratio: expected more than 0"),
            ({"ratio": "x"}, "ratio: expected more than 0"),
            ({"size": 0}, "size: expected 1 to 300"),
            ({"size": 301}, "size: expected 1 to 300 .* found 301"),
            ({"size": 2.0}, "size: expected an integer"),
            ({"start": 300}, "start: expected 0 to 299"),
            ({"projection_dim": 13}, "projection_dim: expected 1 to 12"),
            ({"projection_dim": "much"}, "projection_dim: expected"),
            ({"standardize": (0.0, 0.0)}, "standardize: expected a finite mean and a std above 0"),
            ({"standardize": 3}, "standardize: expected True, False or"),
            ({"bank_precision": "bf8"}, "bank_precision: expected one of auto, float32, half, int8, found 'bf8'"),
            ({"index": None}, "index: expected 'exact' or a FAISS factory string, found None"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(InputError, match=message):
            MemoryBank.build(features(), **arguments)

    @pytest.mark.parametrize("projection_dim", [None, 3])
    def test_names_the_first_bad_row(self, projection_dim):
        rows = features()
        rows[41, 3] = float("nan")
        rows[200] = float("inf")
        with pytest.raises(InputError, match="features: row 41 holds NaN or infinity"):
            MemoryBank.build(rows, projection_dim=projection_dim)


class TestSearch:
    def test_is_brute_force(self):
        bank = MemoryBank(features(100))
        queries = features(30, seed=1)
        distances, rows = bank.search(queries, k=4)
        expected, order = brute_force(queries, bank.vectors, 4)
        np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-6)
        assert (rows.numpy() == order).all()

    def test_k_larger_than_the_bank_and_wrong_lengths(self):
        bank = MemoryBank(features(3))
        with pytest.raises(InputError, match="k: expected 1 to 3"):
            bank.search(features(2), k=4)
        with pytest.raises(InputError, match="queries: expected 12 columns"):
            bank.search(features(2, 11))
        with pytest.raises(InputError, match="queries: row 1 holds NaN"):
            bank.search(torch.tensor([[0.0] * 12, [float("nan")] * 12]))
        with pytest.raises(InputError, match="vectors: row 0 holds NaN"):
            MemoryBank(torch.full((2, 2), float("nan")))
        with pytest.raises(InputError, match="source_rows: expected int64"):
            MemoryBank(features(3), source_rows=torch.arange(4))

    @pytest.mark.parametrize("precision", ["auto", "float32", "half", "int8"])
    def test_precision_of_the_search_copy_does_not_change_answers(self, precision):
        bank = MemoryBank(features(200), bank_precision=precision)
        expected, order = brute_force(features(20, seed=2), bank.vectors, 3)
        distances, rows = bank.search(features(20, seed=2), 3)
        assert (rows.numpy() == order).all()
        np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-6)

    def test_nbytes_counts_the_search_copy_once_it_is_there(self):
        bank = MemoryBank(features(50))
        before = bank.nbytes
        assert before == 50 * 12 * 4 + 50 * 8
        bank.search(features(1))
        assert bank.nbytes == before + bank.search_index.nbytes > before


def numpy_scores(patches, vectors, rule, n):
    """The paper's formulas, one image after the other, in float64."""
    patches, vectors = np.asarray(patches, np.float64), np.asarray(vectors, np.float64)
    results = []
    for image in patches:
        distances = np.linalg.norm(image[:, None] - vectors[None], axis=-1)
        f_star = distances.min(1).argmax()
        m_star = distances[f_star].argmin()
        s_star = distances[f_star, m_star]
        around = np.linalg.norm(vectors - vectors[m_star], axis=1)
        around[m_star] = -1
        members = np.argsort(around, kind="stable")[:n]
        to_members = np.linalg.norm(image[f_star] - vectors[members], axis=1)
        if rule == "m3dm":
            root = np.sqrt(image.shape[1])
            weight = 1 - np.exp(s_star / root) / np.exp(to_members[1:] / root).sum()
        elif rule == "patchcore" and n > 1:
            weight = 1 - np.exp(to_members[0]) / np.exp(to_members).sum()
        else:
            weight = 1
        results.append(weight * s_star)
    return np.array(results)


class TestScore:
    @pytest.mark.parametrize(
        ("rule", "n"), [("m3dm", None), ("m3dm", 2), ("m3dm", 5), ("patchcore", None), ("patchcore", 1), ("max", None)]
    )
    def test_is_the_papers_formula(self, rule, n):
        bank = MemoryBank(features(60))
        patches = features(4 * 25, seed=3).reshape(4, 25, 12)
        scores = bank.score(patches, reweight=rule, n_neighbors=n)
        expected, order = brute_force(patches.reshape(-1, 12), bank.vectors, 1)
        np.testing.assert_allclose(scores.patch.numpy(), expected.reshape(4, 25), rtol=1e-6)
        assert (scores.nearest.numpy() == order.reshape(4, 25)).all()
        wanted = numpy_scores(patches, bank.vectors, rule, n or {"m3dm": 3, "patchcore": 9, "max": 1}[rule])
        np.testing.assert_allclose(scores.image.numpy(), wanted, rtol=1e-5)

    @pytest.mark.parametrize("n_patches", [25, 250])
    def test_the_top_is_the_mean_of_the_worst_patches(self, n_patches):
        bank = MemoryBank(features(60))
        patches = features(4 * n_patches, seed=3).reshape(4, n_patches, 12)
        plain, top = bank.score(patches, reweight="max"), bank.score(patches, reweight="top")
        assert torch.equal(top.patch, plain.patch)
        assert torch.equal(top.nearest, plain.nearest)
        averaged = -(-n_patches // 100)
        expected = np.sort(plain.patch.numpy(), axis=1)[:, -averaged:].mean(1)
        np.testing.assert_allclose(top.image.numpy(), expected, rtol=1e-6)
        halves = bank.score(patches, reweight="top", divisor=2.0)
        np.testing.assert_allclose(halves.image.numpy(), expected / 2, rtol=1e-6)

    def test_m_star_stays_in_its_neighborhood_among_its_copies(self):
        # m* is found as row 0; row 5 is one of its copies. Around it there is nothing else within three.
        vectors = torch.cat([torch.zeros(6, 2), torch.tensor([[3.0, 0.0]])])
        bank = MemoryBank(vectors)
        assert _neighborhood(bank.search_index, torch.tensor([5, 0]), 3).tolist() == [[5, 0, 1], [0, 1, 2]]
        scores = bank.score(torch.tensor([[[0.0, 1.0]]]))
        assert scores.image.item() == pytest.approx(1 - 1 / 2)
        assert scores.nearest.item() == 0

    def test_far_away_features_do_not_overflow(self):
        bank = MemoryBank(features(20, 2))
        scores = bank.score(torch.full((1, 1, 2), 1e5), reweight="patchcore")
        assert torch.isfinite(scores.image).all()
        assert bank.score(torch.full((1, 1, 2), 1e5)).image.item() > 0

    def test_a_perfect_match_scores_zero(self):
        bank = MemoryBank(features(20))
        scores = bank.score(bank.vectors[None, 3:8])
        assert scores.patch.abs().max() == 0
        assert scores.nearest.tolist() == [[3, 4, 5, 6, 7]]
        assert scores.image.item() == 0

    @pytest.mark.parametrize("rule", ["m3dm", "patchcore", "max"])
    def test_banks_of_one_and_two_vectors(self, rule):
        patches = features(6, seed=1).reshape(2, 3, 12)
        single = MemoryBank(features(1)).score(patches, reweight=rule)
        assert torch.equal(single.image, single.patch.max(1).values)
        two = MemoryBank(features(2))
        expected = numpy_scores(patches, two.vectors, rule, 2)
        np.testing.assert_allclose(two.score(patches, reweight=rule).image.numpy(), expected, rtol=1e-5)

    def test_numpy_and_half_precision_patches(self):
        bank = MemoryBank(features(30))
        patches = features(10, seed=1).reshape(1, 10, 12).half()
        assert torch.equal(bank.score(patches.numpy()).patch, bank.score(patches.float()).patch)

    @pytest.mark.parametrize(
        ("patches", "message"),
        [
            (torch.rand(3, 12), "patches: expected 3-D"),
            (torch.rand(1, 3, 11), r"patches: expected shape \(B, P, 12\)"),
            (torch.rand(0, 3, 12), r"patches: expected shape \(B, P, 12\), not empty"),
            (torch.zeros(1, 3, 12, dtype=torch.int32), "patches: expected floating-point"),
            (torch.full((2, 3, 12), float("nan")), "patches: image 0, patch 0 holds NaN"),
        ],
    )
    def test_refuses(self, patches, message):
        with pytest.raises(InputError, match=message):
            MemoryBank(features(20)).score(patches)

    @pytest.mark.parametrize("index", ["exact", "Flat"])
    def test_names_image_and_patch_of_bad_values(self, index):
        if index != "exact":
            pytest.importorskip("faiss")
        patches = torch.zeros(4, 3, 12)
        patches[2, 1, 5] = float("-inf")
        with pytest.raises(InputError, match="patches: image 2, patch 1 holds NaN or infinity; expected finite values"):
            MemoryBank(features(20), index=index).score(patches)


class TestStandardize:
    def test_is_scoring_on_standardised_features(self):
        rows = features(300) * 7 + 100
        bank = MemoryBank.build(rows, size=30, standardize=True)
        mean, std = bank.standardization
        assert (mean, std) == pytest.approx((rows.double().mean().item(), rows.double().std().item()), rel=1e-7)
        patches = (features(20, seed=1) * 7 + 101).reshape(2, 10, 12)
        plain = MemoryBank.build((rows.double() - mean) / std, size=30)
        assert torch.equal(bank.source_rows, plain.source_rows)
        assert torch.equal(bank.vectors, rows[bank.source_rows])
        assert bank.radius == pytest.approx(plain.radius, rel=1e-4)
        for rule in ("m3dm", "patchcore"):
            found = bank.score(patches, reweight=rule)
            expected = plain.score((patches.double() - mean) / std, reweight=rule)
            torch.testing.assert_close(found.patch, expected.patch, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.image, expected.image, rtol=1e-4, atol=1e-4)
            assert torch.equal(found.nearest, expected.nearest)

    def test_moments_of_a_stream_far_from_zero(self, monkeypatch):
        monkeypatch.setattr(dumps, "_BLOCK_BYTES", 12 * 4 * 7)
        rows = features(100) * 0.01 + 1e4
        mean, std = MemoryBank.build(rows, size=2, standardize=True).standardization
        assert (mean, std) == pytest.approx((rows.double().mean().item(), rows.double().std().item()), rel=1e-6)

    def test_given_values(self):
        bank = MemoryBank.build(features(), size=9, standardize=(1.0, 4.0))
        distances, _ = bank.search(features(5, seed=1))
        plain, _ = MemoryBank(bank.vectors).search(features(5, seed=1))
        assert torch.equal(distances, plain / 4)
        again, _ = MemoryBank(bank.vectors, standardization=(1.0, 4.0)).search(features(5, seed=1))
        assert torch.equal(distances, again)

    def test_constant_features(self):
        with pytest.raises(InputError, match="standardize: expected features that vary"):
            MemoryBank.build(torch.ones(5, 3), size=2, standardize=True)


class TestProvenance:
    def test_of_arrays(self):
        bank = MemoryBank.build(features(30).reshape(5, 6, 12), size=4, start=20)
        origins = bank.provenance()
        assert origins[0] == ("features", 20, 3, 2, "features[3]", None)
        assert [origin.row for origin in origins] == bank.source_rows.tolist()
        assert bank.provenance(torch.tensor([[1, 0]]))[1] == origins[0]
        assert MemoryBank.build(features(30), size=1).provenance()[0] == ("features", 0, None, None, "features", None)
        assert MemoryBank(features(3)).provenance([2])[0] == ("vectors", 2, None, None, "vectors", None)

    def test_explains_a_score(self):
        bank = MemoryBank.build(features(30).reshape(5, 6, 12), size=10)
        scores = bank.score(features(7, seed=1).reshape(1, 7, 12))
        for origin, row in zip(bank.provenance(scores.nearest[0]), scores.nearest[0], strict=True):
            assert torch.equal(features(30).reshape(5, 6, 12)[origin.image, origin.patch], bank.vectors[row])

    def test_refuses_rows_outside(self):
        bank = MemoryBank(features(3))
        for rows in ([3], [-1], torch.tensor([0.5])):
            with pytest.raises(InputError, match="rows: expected bank rows 0 to 2"):
                bank.provenance(rows)


class TestExtend:
    @pytest.mark.parametrize("projection_dim", [None, 5])
    def test_its_own_features_add_nothing(self, projection_dim):
        rows = features(200)
        bank = MemoryBank.build(rows, size=20, projection_dim=projection_dim)
        before = bank.vectors.clone()
        assert bank.extend(rows) == 0
        assert torch.equal(bank.vectors, before)
        assert len(bank.sources) == 1

    @pytest.mark.parametrize("projection_dim", [None, 5])
    def test_covers_the_new_rows_within_the_old_radius(self, projection_dim):
        rows, new = features(200), features(100, seed=1) + 2
        bank = MemoryBank.build(rows, size=20, projection_dim=projection_dim)
        old, radius = bank.vectors.clone(), bank.radius
        added = bank.extend(new)
        assert 0 < added == len(bank) - 20
        assert torch.equal(bank.vectors[:20], old)
        assert torch.equal(bank.vectors[20:], new[bank.source_rows[20:] - 200])
        assert bank.radius == radius
        space = (lambda x: x) if projection_dim is None else bank.projection
        distances, _ = brute_force(space(new), space(bank.vectors), 1)
        assert distances.max() <= radius * (1 + 1e-6)
        # Greedy: every row was farther than the radius from all before it.
        for row in range(20, len(bank)):
            nearest, _ = brute_force(space(bank.vectors[row : row + 1]), space(bank.vectors[:row]), 1)
            assert nearest.item() > radius

    def test_searches_the_new_rows_and_knows_where_they_came_from(self, tmp_path):
        np.save(tmp_path / "new.npy", (features(30, seed=1) + 50).reshape(5, 6, 12).numpy())
        bank = MemoryBank.build(features(200), size=20)
        bank.search(features(1))
        added = bank.extend(tmp_path / "new.npy", size=4)
        assert added == 4
        distances, rows = bank.search(bank.vectors[20:])
        assert rows[:, 0].tolist() == [20, 21, 22, 23]
        assert distances.abs().max() == 0
        origins = bank.provenance([0, 20])
        assert origins[0].file == "features"
        assert origins[1].file == str(tmp_path / "new.npy")
        assert torch.equal(torch.from_numpy(np.load(tmp_path / "new.npy"))[origins[1][2:4]], bank.vectors[20])
        assert bank.extend(features(10, seed=5) - 50, size=2) == 2
        assert [source.rows for source in bank.sources] == [200, 30, 10]
        assert bank.provenance([24])[0].file == "features"
        assert torch.equal((features(10, seed=5) - 50)[bank.provenance([24])[0].row], bank.vectors[24])

    def test_a_budget_widens_the_radius_to_what_is_left_uncovered(self):
        bank = MemoryBank.build(features(200), size=20)
        new = features(50, seed=1) * 10
        assert bank.extend(new, size=3) == 3
        distances, _ = brute_force(new, bank.vectors, 1)
        assert bank.radius == pytest.approx(distances.max(), rel=1e-6)

    def test_a_budget_is_a_limit_not_a_goal(self):
        bank = MemoryBank.build(features(200), size=20)
        assert bank.extend(features(200), size=5) == 0
        assert bank.extend(features(40, seed=1), radius=0.0, size=5) == 5

    def test_given_radius_in_standardised_units(self):
        rows = features(200) * 30
        bank = MemoryBank.build(rows, size=20, standardize=True)
        new = features(60, seed=1) * 60
        radius = bank.radius * 1.5
        added = bank.extend(new, radius=radius)
        assert added > 0
        distances, _ = bank.search(new)
        assert distances.max() <= radius * (1 + 1e-6)
        assert bank.radius == pytest.approx(max(distances.max().item(), radius / 1.5), rel=1e-6)

    def test_refuses(self):
        bank = MemoryBank(features(10))
        with pytest.raises(InputError, match="radius: expected a radius or a size"):
            bank.extend(features(5))
        with pytest.raises(InputError, match="expected vectors of length 12 as in the bank, found 3"):
            bank.extend(torch.rand(4, 3), size=1)
        with pytest.raises(InputError, match="radius: expected a finite number of at least 0"):
            bank.extend(features(5), radius=-1.0)
        with pytest.raises(InputError, match="size: expected"):
            bank.extend(features(5), size=0)
        with pytest.raises(InputError, match="features: row 2 holds NaN"):
            bank.extend(torch.full((5, 12), float("nan")).index_fill(0, torch.tensor([0, 1]), 1.0), size=2)
        assert len(bank) == 10
        assert bank.extend(features(5, seed=2), size=2) == 2
        assert bank.radius is None


def test_to_the_device_it_is_on_is_itself():
    bank = MemoryBank(features(5))
    assert bank.to("cpu") is bank


def test_where_the_vectors_are_kept_is_checked(tmp_path):
    bank = MemoryBank(features(5))
    bank.save(tmp_path / "b.safetensors")
    for refuse in (
        lambda: bank.to("cpu", vectors_on="disk"),
        lambda: MemoryBank.build(features(5), vectors_on="disk"),
        lambda: MemoryBank.load(tmp_path / "b.safetensors", vectors_on="disk"),
    ):
        with pytest.raises(InputError, match="vectors_on: expected one of device, host, found 'disk'"):
            refuse()
    for refuse in (lambda: bank.to("cuda:99"), lambda: MemoryBank.build(features(5), device="cuda:99")):
        with pytest.raises(InputError, match="device: 'cuda:99' cannot be used"):
            refuse()


def test_vectors_on_the_host_are_where_the_cpu_searches(tmp_path):
    bank = MemoryBank.build(features(60), size=9, device="cpu", vectors_on="host")
    assert bank.device == bank.vectors.device == torch.device("cpu")
    assert torch.equal(bank.source_rows, MemoryBank.build(features(60), size=9).source_rows)
    bank.save(tmp_path / "b.safetensors")
    loaded = MemoryBank.load(tmp_path / "b.safetensors", vectors_on="host", mapped=True)
    assert loaded.nbytes < bank.vectors.nbytes  # still memory-mapped
    assert loaded.to("cpu", vectors_on="host") is loaded


def test_a_bank_of_which_only_the_search_moves():
    """Vectors stay; the copy, the index and the device are another's. (The meta device holds no values.)"""
    bank = MemoryBank(features(5))
    moved = bank.to("meta", vectors_on="host")
    assert moved.device == torch.device("meta")
    assert moved.vectors is bank.vectors
    assert bank.device == torch.device("cpu")
    assert moved.to("meta").vectors.is_meta
    assert moved.to("cpu").device == torch.device("cpu")


def test_a_dump_that_does_not_fit_stays_in_host_memory(monkeypatch):
    """Asked is for the rows that are selected from, projected if they are, and their number."""
    asked = []
    monkeypatch.setattr(ops, "selection_fits", lambda *given: asked.append(given) or given[1] < 10)
    dump, meta = dumps.open_dump(features(60)), torch.device("meta")
    wide = selection_space(dump, None, lambda *_: None, n_select=7, device=meta)
    narrow = selection_space(dump, SparseProjection(12, 8, 0), lambda *_: None, n_select=7, device=meta)
    assert asked == [(60, 12, 7, meta), (60, 8, 7, meta)]
    assert torch.equal(wide, features(60))
    assert narrow.is_meta


def test_the_selection_is_told_where(monkeypatch):
    seen = []
    select, extend = ops.k_center_greedy, ops.extend_coreset
    monkeypatch.setattr(ops, "k_center_greedy", lambda *a, **k: seen.append(k["device"]) or select(*a, **k))
    monkeypatch.setattr(ops, "extend_coreset", lambda *a, **k: seen.append(k["device"]) or extend(*a, **k))
    bank = MemoryBank.build(features(60), size=7, device="cpu")
    bank.extend(features(5, seed=1) + 9)
    assert seen == [torch.device("cpu")] * 2


def on_cuda(rows, **arguments):
    return MemoryBank.build(rows, size=40, device="cuda", **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "int8", "float32"])
@pytest.mark.parametrize("reweight", ["m3dm", "patchcore"])
def test_vectors_on_the_host_give_the_same_answers(reweight, precision, tmp_path):
    rows, patches = features(400, 40), features(50, 40, seed=1).reshape(2, 25, 40)
    cpu = MemoryBank.build(rows, size=40)
    cpu.save(tmp_path / "b.safetensors")
    path = tmp_path / "b.safetensors"
    cuda = on_cuda(rows, bank_precision=precision)
    for bank in (
        on_cuda(rows, bank_precision=precision, vectors_on="host"),
        cuda.to("cuda", vectors_on="host"),
        MemoryBank.load(path, "cuda", bank_precision=precision, vectors_on="host"),
    ):
        assert (bank.device.type, bank.vectors.device.type) == ("cuda", "cpu")
        found, expected = bank.score(patches, reweight=reweight), cpu.score(patches, reweight=reweight)
        assert torch.equal(found.nearest.cpu(), expected.nearest)
        torch.testing.assert_close(found.image.cpu(), expected.image)
        assert bank.to("cuda").vectors.is_cuda
        assert bank.to("cuda", vectors_on="host") is bank
        assert bank.extend(features(60, 40, seed=2) + 3, size=5) == 5
        assert bank.vectors.device.type == "cpu"
        assert torch.equal(bank.search(patches[0], 3)[1].cpu(), bank.to("cpu").search(patches[0], 3)[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("projection_dim", [None, 16])
def test_a_dump_larger_than_the_device(projection_dim, monkeypatch):
    rows = features(3000, 40)
    expected = MemoryBank.build(rows, size=100, projection_dim=projection_dim, device="cuda")
    monkeypatch.setattr(ops, "selection_fits", lambda *_: False)
    monkeypatch.setattr("mmad_bank.ops._cuda.operand.resident_tiles", lambda *_: 3)
    for vectors_on in ("device", "host"):
        bank = MemoryBank.build(rows, size=100, projection_dim=projection_dim, device="cuda", vectors_on=vectors_on)
        assert torch.equal(bank.source_rows, expected.source_rows)
        assert bank.vectors.is_cuda == (vectors_on == "device")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_cuda_gives_the_cpus_answers():
    rows, patches = features(400, 40), features(50, 40, seed=1).reshape(2, 25, 40)
    cpu = MemoryBank.build(rows, size=40, projection_dim=16)
    for bank in (cpu.to("cuda"), MemoryBank.build(rows, size=40, projection_dim=16, device="cuda")):
        assert bank.vectors.is_cuda
        assert torch.equal(bank.source_rows, cpu.source_rows)
        found, expected = bank.score(patches), cpu.score(patches)
        assert torch.equal(found.nearest.cpu(), expected.nearest)
        torch.testing.assert_close(found.image.cpu(), expected.image)
    assert cpu.to("cuda").extend(features(60, 40, seed=2) + 3) == cpu.extend(features(60, 40, seed=2) + 3)


def test_ops_are_what_the_bank_is_made_with():
    rows = features(150)
    assert torch.equal(MemoryBank.build(rows, size=12).source_rows, ops.k_center_greedy(rows, 12))


class TestFormerNames:
    """Arguments by the names of version 0.1 work, and say what they are called now."""

    def test_of_build(self):
        with pytest.warns(DeprecationWarning, match="standardise is standardize now"):
            bank = MemoryBank.build(torch.rand(40, 4), size=5, standardise=True)
        assert bank.standardization is not None

    def test_of_the_constructor(self):
        with pytest.warns(DeprecationWarning, match="standardisation is standardization now"):
            bank = MemoryBank(torch.rand(4, 3), standardisation=(0.5, 2.0))
        assert bank.standardization == (0.5, 2.0)

    def test_the_names_of_now_give_no_warning(self, recwarn):
        MemoryBank.build(torch.rand(40, 4), size=5, standardize=True, bank_precision="half")
        assert not [one for one in recwarn if one.category is DeprecationWarning]


def test_with_precision_shares_the_vectors_and_gives_the_same_answers() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 24), dtype=np.float32))
    bank = MemoryBank(rows, extractor="a network")
    assert bank.with_precision("auto") is bank
    compact = bank.with_precision("int8")
    assert (compact.bank_precision, bank.bank_precision, compact.extractor) == ("int8", "auto", "a network")
    assert compact.vectors.data_ptr() == bank.vectors.data_ptr()
    assert compact.search_index is not bank.search_index
    for own, other in zip(compact.search(rows[:20] + 0.1, k=3), bank.search(rows[:20] + 0.1, k=3), strict=True):
        assert torch.equal(own, other)
    with pytest.raises(InputError, match="bank_precision: expected one of"):
        bank.with_precision("int4")  # type: ignore[arg-type]
