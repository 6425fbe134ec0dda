"""The training loop: what survives a kill, what stops it, and what a step may draw from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmad_bank._internal.training import check_rate, cosine_rate, generator_at, sample_order, train
from mmad_bank.errors import FormatError, InputError, MmadBankError

STEPS = 7


class Interrupted(Exception):
    pass


class Queue:
    """What a method may fill on the way: the last three losses."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def state_dict(self) -> dict:
        return {"values": list(self.values)}

    def load_state_dict(self, state: dict) -> None:
        self.values = list(state["values"])


def run(path: Path | None = None, stop_at: int | None = None, **changes) -> tuple[list[torch.Tensor], list[float]]:
    """Train a network with dropout; ``stop_at`` interrupts in the middle of that step."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(10, 4, generator=generator)
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    queue = Queue()

    def losses(step: int):
        for part in (0, 1):
            rows = sample_order(10, step * 4 + part * 2, 2, seed=3)
            loss = net(inputs[rows]).square().mean()
            yield loss
            if step == stop_at:
                raise Interrupted
            queue.values = [*queue.values, loss.item()][-3:]

    adam = torch.optim.Adam(net.parameters())
    arguments = {"steps": STEPS, "seed": 3, **changes}
    train(
        losses, {"model": net, "queue": queue}, adam, kind="Toy", caller="train_toy", arguments=arguments,
        rate=lambda step: cosine_rate(step, steps=STEPS, lr=0.1), resume=path, save_every=2,
    )  # fmt: skip
    return [parameter.detach() for parameter in net.parameters()], queue.values


@pytest.mark.parametrize("stop_at", range(STEPS))
def test_a_kill_at_any_step_changes_no_bit(tmp_path: Path, stop_at: int) -> None:
    whole, queue = run(tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        run(tmp_path / "broken.pt", stop_at)
    resumed, queue_again = run(tmp_path / "broken.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert queue == queue_again
    files = [torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "broken.pt")]
    first, second = (file["optimizer"]["state"] for file in files)
    assert all(torch.equal(first[i][name], second[i][name]) for i in range(4) for name in first[i])
    finished, _ = run(tmp_path / "broken.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole, finished, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.pt", "whole.pt"]


def test_the_global_generator_is_seeded_inside_and_restored_after() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    first, _ = run()
    assert torch.equal(torch.rand(3), expected)
    second, _ = run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_of_all_losses_add_up_at_the_rate_of_the_step() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    sgd = torch.optim.SGD(net.parameters(), lr=99.0)
    rates = [0.5, 0.25, 1.0]
    train(
        lambda step: ((step + 1) * part * net.weight.sum() for part in (1, 2)), {"model": net}, sgd, kind="x",
        caller="x", arguments={"steps": 3, "seed": 0}, rate=lambda step: rates[step],
    )  # fmt: skip
    assert net.weight.item() == pytest.approx(-(3 * 0.5 + 6 * 0.25 + 9 * 1.0))


def test_what_comes_behind_a_step_sees_its_weights_and_gradients(tmp_path: Path) -> None:
    """And is saved with the step: a clamp after every step holds in the file too."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    seen = []

    def after(step: int) -> None:
        seen.append((step, net.weight.item(), net.weight.grad.item()))
        net.weight.data.clamp_(min=0.5)

    train(
        lambda step: [net.weight.sum()], {"model": net}, torch.optim.SGD(net.parameters(), lr=0.25), kind="Toy",
        caller="train_toy", arguments={"steps": 3, "seed": 0}, after=after, resume=tmp_path / "toy.pt", save_every=1,
    )  # fmt: skip
    assert seen == [(0, 0.75, 1.0), (1, 0.5, 1.0), (2, 0.25, 1.0)]
    assert torch.load(tmp_path / "toy.pt", weights_only=True)["model"]["weight"].item() == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_file(tmp_path: Path, bad: float) -> None:
    net = nn.Linear(1, 1)
    options = {"kind": "Toy", "caller": "train_toy", "arguments": {"steps": 5, "seed": 0}, "save_every": 1}
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    file = tmp_path / "state.pt"
    with pytest.raises(MmadBankError, match=f"train_toy: the loss is {bad} at step 3 of 5"):
        train(
            lambda step: [net.weight.sum() * (bad if step == 3 else 1.0)], {"model": net}, sgd, **options, resume=file
        )
    assert torch.load(file, weights_only=True)["step"] == 3


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(MmadBankError, match="weight is not finite after step 0 of 1"):
        # A root has a finite value and an infinite slope at 0.
        train(
            lambda step: [net.weight.sqrt().sum()], {"model": net}, sgd, kind="x", caller="x",
            arguments={"steps": 1, "seed": 0}, resume=tmp_path / "x.pt",
        )  # fmt: skip
    assert not (tmp_path / "x.pt").exists()


def test_states_of_other_trainings_are_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    run(file)
    before = file.read_bytes()
    with pytest.raises(FormatError, match="with lr None, now asked for 2"):
        run(file, lr=2)
    net = nn.Linear(2, 2)
    options = {"caller": "x", "arguments": {"steps": STEPS, "seed": 3}, "resume": file}
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(FormatError, match="not the state of a Other training"):
        train(lambda step: [], {"model": net}, sgd, kind="Other", **options)
    with pytest.raises(FormatError, match="of a Toy training, but of other networks"):
        train(lambda step: [], {"model": net}, sgd, kind="Toy", **options)
    assert file.read_bytes() == before
    file.write_bytes(before[:-40])
    with pytest.raises(FormatError, match="or a truncated one"):
        run(file)
    with pytest.raises(InputError, match="save_every"):
        train(lambda step: [], {"model": net}, sgd, kind="Toy", save_every=0, **options)
    with pytest.raises(InputError, match="cannot be written"):
        run(tmp_path / "nowhere" / "state.pt")


def test_schedule_and_order() -> None:
    rates = [cosine_rate(step, steps=10, warmup=4, lr=1.0) for step in range(10)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[7] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.1
    assert cosine_rate(2, steps=3, warmup=3, lr=2.0) == 2.0
    order = sample_order(5, 0, 20, seed=1)
    assert all(sorted(order[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 20, 5))
    assert order[:5] != order[5:10]
    assert sample_order(5, 7, 6, seed=1) == order[7:13]


def test_generators_of_different_places_differ() -> None:
    places = [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]
    drawn = {torch.rand(1, generator=generator_at(*place)).item() for place in places}
    assert len(drawn) == 4


@pytest.mark.parametrize("lr", [0, -1.0, float("nan"), float("inf"), "fast", True])
def test_bad_rates_are_named(lr) -> None:
    with pytest.raises(InputError, match="rate_x: expected a positive finite number"):
        check_rate(lr, "rate_x")
