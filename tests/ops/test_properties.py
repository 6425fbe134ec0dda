"""Search and selection on whatever shapes and values hypothesis comes up with."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmad_bank as mb
from mmad_bank.ops import reference


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """Rows of a random kind: smooth, near a plane, on a coarse grid (many ties), with copies, scaled and shifted."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, dim = draw(st.integers(2, 120)), draw(st.sampled_from([1, 2, 3, 7, 16, 31, 32, 33, 64, 200]))
    kind = draw(st.sampled_from(["smooth", "plane", "grid", "copies"]))
    values = rng.standard_normal((count, dim))
    if kind == "plane":
        values = rng.standard_normal((count, 2)) @ rng.standard_normal((2, dim)) + 1e-3 * values
    elif kind == "grid":
        values = rng.integers(0, 2, (count, dim)).astype(float)
    elif kind == "copies":
        values = values[rng.integers(0, max(1, count // 4), count)]
    scale = draw(st.sampled_from([1e-20, 1e-3, 1.0, 1e4, 1e10]))
    shift = draw(st.sampled_from([0.0, 0.0, 1.0, 1e3]))
    return torch.from_numpy((scale * (values + shift)).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(bank=rows(), data=st.data())
def test_search_equals_brute_force(bank: torch.Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(bank)))
    precision = data.draw(st.sampled_from(["auto", "float32", "half", "int8"]))
    queries = torch.cat([bank[: len(bank) // 3 + 1] * 1.5, bank.flip(0)[:3]])
    expected_distances, expected = reference.knn(queries, bank, k)
    distances, indices = mb.ops.knn(queries, bank, k, precision=precision)
    # Different rows can be at the same distance: which is nearer in float64 is then up to the order of the additions,
    # and either answer is right. Copies of one row have the same sum in any order.
    near = [(bank[found].double() - queries[:, None].double()).square().sum(2) for found in (indices, expected)]
    apart = (near[0] - near[1]).abs() > (bank.shape[1] + 2) * 2.0**-52 * near[1]
    assert not bool(((indices != expected) & (apart | (bank[indices] == bank[expected]).all(2))).any())
    torch.testing.assert_close(distances, expected_distances, rtol=3e-7, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(features=rows(), data=st.data())
def test_selection_equals_the_textbook_loop(features: torch.Tensor, data: st.DataObject) -> None:
    n_select, start = data.draw(st.integers(1, len(features))), data.draw(st.integers(0, len(features) - 1))
    expected = reference.k_center_greedy(features, n_select, start=start)
    assert torch.equal(mb.ops.k_center_greedy(features, n_select, start=start), expected)
