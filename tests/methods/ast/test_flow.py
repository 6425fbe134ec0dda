"""AST's teacher against autograd's Jacobian: determinant, likelihood, inverse; its student, and the positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmad_bank.errors import InputError
from mmad_bank.methods.ast.flow import CouplingBlock, Flow, negative_log_likelihood
from mmad_bank.methods.ast.position import position_map
from mmad_bank.methods.ast.student import ResidualBlock, Student

CHANNELS, CONDITION, GRID = 5, 4, (2, 3)


def a_flow(blocks: int = 3, seed: int = 0, channels: int = CHANNELS, condition: int = CONDITION) -> Flow:
    """A flow that is far from the identity, in float64."""
    torch.manual_seed(seed)
    flow = Flow(channels, condition, blocks=blocks, width=7).double()
    for block in flow.blocks:
        for subnet in (block.of_first, block.of_rest):
            subnet.gamma.data.fill_(3.0)
    return flow


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def x() -> Tensor:
    return drawn(1, 1, CHANNELS, *GRID)


@pytest.fixture
def condition() -> Tensor:
    return drawn(2, 1, CONDITION, *GRID)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_determinant_is_that_of_the_whole_jacobian(x: Tensor, condition: Tensor, blocks: int) -> None:
    flow = a_flow(blocks)
    z, log_det = flow(x, condition)
    n = x.numel()
    jacobian = torch.autograd.functional.jacobian(lambda one: flow(one, condition)[0], x).view(n, n)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert abs(float(expected)) > 0.5, "a flow near the identity would tell nothing"
    torch.testing.assert_close(log_det.sum(), expected)
    assert log_det.shape == (1, *GRID)
    normal = torch.distributions.Normal(0.0, 1.0)
    likelihood = normal.log_prob(z).sum() + expected
    own = -negative_log_likelihood(z, log_det).sum() - n / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(own, likelihood)


def test_the_inverse_gives_back_what_went_in(condition: Tensor) -> None:
    flow, x = a_flow(4), 10 * drawn(3, 2, CHANNELS, *GRID)
    condition = condition.expand(2, -1, -1, -1)
    z, _ = flow(x, condition)
    assert (z - x).abs().max() > 1
    torch.testing.assert_close(flow.inverse(z, condition), x, rtol=1e-9, atol=1e-9)
    other = flow.inverse(z, condition + 1)
    assert (other - x).abs().max() > 1e-3, "the condition has a say"


def test_an_untrained_flow_permutes_the_channels(x: Tensor, condition: Tensor) -> None:
    flow = Flow(CHANNELS, CONDITION, blocks=2, width=3).double()
    z, log_det = flow(x, condition)
    order = flow.blocks[0].permutation[flow.blocks[1].permutation]
    assert torch.equal(z, x[:, order])
    assert not log_det.any()


def test_the_permutation_follows_from_the_number_of_the_block() -> None:
    torch.manual_seed(1)
    one = a_flow(3, seed=1, channels=40)
    other = a_flow(3, seed=2, channels=40)
    orders = [block.permutation.tolist() for block in one.blocks]
    assert orders == [block.permutation.tolist() for block in other.blocks]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert {"blocks.0.permutation", "blocks.2.permutation"} <= set(one.state_dict()), "it goes with the weights"


def test_log_scales_stay_within_the_clamp() -> None:
    block = CouplingBlock(4, 0, width=3, kernel=3, clamp=1.9, seed=0).double()
    for subnet in (block.of_first, block.of_rest):
        subnet.gamma.data.fill_(1e6)
    _, log_det = block(drawn(4, 1, 4, 2, 2), drawn(5, 1, 0, 2, 2))
    # Two halves of two channels each, at most 1.9 · 0.636 · π/2 a channel.
    bound = 4 * 1.9 * 0.636 * math.pi / 2
    assert 0 < log_det.abs().max() <= bound


def test_kernels_and_borders() -> None:
    """3×3 but for the last block's 5×5; beyond the border the outermost cells go on."""
    flow = Flow(4, 4, blocks=4, width=2)
    assert [block.of_rest.first.kernel_size[0] for block in flow.blocks] == [3, 3, 3, 5]
    subnet = a_flow(1).blocks[0].of_rest
    flat = subnet(torch.ones(1, subnet.first.in_channels, 6, 6, dtype=torch.float64))
    assert (flat - flat[..., :1, :1]).abs().max() < 1e-12


def test_gradients_are_finite_and_reach_every_weight(x: Tensor, condition: Tensor) -> None:
    flow = a_flow(3)
    negative_log_likelihood(*flow(x * 100, condition)).mean().backward()
    for name, weights in flow.named_parameters():
        assert weights.grad is not None, name
        assert torch.isfinite(weights.grad).all(), name
        assert weights.grad.any(), name


def test_positions_by_hand() -> None:
    found = position_map(8, (3, 4))
    assert found.shape == (8, 3, 4)
    for row, column in ((0, 0), (2, 3)):
        expected = [
            f(place * frequency) for place in (column, row) for frequency in (1.0, 0.01) for f in (math.sin, math.cos)
        ]
        assert found[:, row, column].tolist() == pytest.approx(expected, abs=1e-6)
    assert len({tuple(one) for one in found.flatten(1).T.tolist()}) == 12, "no two cells are alike"
    with pytest.raises(InputError, match=r"channels: expected a multiple of 4, sine and cosine of .*, found 6"):
        position_map(6, (2, 2))


def test_the_student_is_convolutions_around_residual_blocks() -> None:
    torch.manual_seed(0)
    student = Student(CHANNELS, CONDITION, blocks=2, width=6).eval()
    x, condition = torch.rand(2, CHANNELS, 4, 4), torch.rand(2, CONDITION, 4, 4)
    inner = torch.nn.functional.leaky_relu(student.first(torch.cat([x, condition], dim=1)))
    for block in student.blocks:
        assert isinstance(block, ResidualBlock)
        own = inner
        for layer, norm in ((block.first, block.first_norm), (block.second, block.second_norm)):
            own = torch.nn.functional.leaky_relu(norm(layer(own)))
        inner = inner + own
    torch.testing.assert_close(student(x, condition), student.last(inner))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 1}, r"channels: expected 2 to \d+ \(a coupling cuts them in two\), found 1"),
        ({"blocks": 0}, r"blocks: expected 1 to \d+ \(a flow has one\), found 0"),
        ({"width": 0}, r"width: expected 1 to \d+ \(channels within a block\), found 0"),
    ],
)
def test_bad_sizes_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Flow(**{"channels": 4, "condition": 4, **arguments})
