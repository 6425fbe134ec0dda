"""The loop that every training here runs in: killed at any step and started again, it ends with the same weights.

A training is a function that gives the losses of a step. Whatever it draws must follow from the step's number: the
order of images from :func:`sample_order`, other draws from :func:`generator_at` or from the global generator, which
the loop seeds anew before every step. So a step needs nothing of the ones before it but weights and the optimizer's
state, and the state file holds no generator.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.files import replacing
from mmad_bank._internal.progress import progress_bar
from mmad_bank._internal.resume import wording
from mmad_bank.errors import FormatError, InputError, MmadBankError

_RESERVED = ("mmad_bank", "arguments", "step", "optimizer")
_STEP_STREAM, _ORDER_STREAM = -1, 0


class Pairs(Protocol):
    """Training images: a list of pairs, or any data set of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return the features of one image's patches: 3-D (P, xyz_dim) and RGB (P, rgb_dim)."""


class Stateful(Protocol):
    """What a training changes: networks, and for instance banks that are filled on the way."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that must come back for the training to go on."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take it back."""


def train(
    losses: Callable[[int], Iterable[Tensor]],
    stateful: Mapping[str, Stateful],
    optimizer: torch.optim.Optimizer,
    *,
    kind: str,
    caller: str,
    arguments: Mapping[str, Any],
    rate: Callable[[int], float] | None = None,
    after: Callable[[int], None] | None = None,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> None:
    """Take ``arguments["steps"]`` optimizer steps, from a saved state if there is one.

    Args:
        losses: Function of the step's number from 0 that gives its losses. Each is checked and differentiated before
            the next is asked for, so that a generator keeps one graph at a time; the step's gradient is that of their
            sum.
        stateful: Objects that the training changes, by their name in the state file: usually ``{"model": network}``.
        optimizer: Optimizer of the networks' parameters.
        kind: Name of what is trained, for the bar and for messages about the state file: ``"UFF"``.
        caller: The function that an error names.
        arguments: All that the result depends on, as plain numbers and strings; ``"steps"`` and ``"seed"`` among them.
            A state saved under others is refused.
        rate: Learning rate of a step; None leaves the optimizer's.
        after: Function of the step's number, called behind the optimizer's step while the gradients are still there.
        resume: File of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced. The file of a finished training holds the result.
        save_every: Number of steps between saved states.
        device: Device that the networks are on; its global generator is seeded before each step, and restored at the
            end.
        progress: Whether to show a bar on a terminal.

    Raises:
        InputError: ``save_every`` is not positive or ``resume`` cannot be written.
        FormatError: ``resume`` is no state of such a training, or of one with other arguments.
        MmadBankError: A loss, or a weight about to be saved, is not finite; the message names the step.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> nn.init.ones_(net.weight).tolist()
        [[1.0, 1.0]]
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.25)
        >>> run = {"kind": "line", "caller": "fit_line", "arguments": {"steps": 2, "seed": 0}}
        >>> train(lambda step: [net(torch.ones(2)).square().sum()], {"model": net}, sgd, **run)
        >>> net.weight.tolist()
        [[0.0, 0.0]]
    """
    check_index(save_every, "save_every", 1, 2**31 - 1, "steps between saved states")
    steps, seed, device = int(arguments["steps"]), int(arguments["seed"]), torch.device(device)
    file = None if resume is None else Path(resume)
    state = _State(kind, dict(arguments), stateful, optimizer)
    first = state.load(file, device) if file is not None and file.exists() else 0
    bar = progress_bar(f"training {kind}", steps) if progress else nullcontext(_silent)
    with torch.enable_grad(), _global_generator(device) as reseed, bar as report:
        report(first)
        for step in range(first, steps):
            reseed(_mixed(seed, _STEP_STREAM, step))
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
            optimizer.zero_grad()
            for loss in losses(step):
                _check_loss(loss, step, steps, caller)
                loss.backward()
            optimizer.step()
            if after is not None:
                after(step)
            done, last = step + 1, step + 1 == steps
            report(done)
            if last or (file is not None and done % save_every == 0):
                _check_weights(stateful, step, steps, caller)
                if file is not None:
                    state.save(file, done)


def cosine_rate(step: int, *, steps: int, warmup: int = 0, lr: float) -> float:
    """Return the rate of a step, counted from 0: linear to ``lr`` in ``warmup`` steps, then a cosine towards 0.

    Example:
        >>> [round(cosine_rate(step, steps=4, lr=1.0), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def sample_order(n_samples: int, first: int, n: int, seed: int) -> list[int]:
    """Return samples ``first`` to ``first + n`` of an endless sequence of seeded permutations: no state to save.

    Step ``s`` of a training with batches of ``b`` takes ``sample_order(n_samples, s * b, b, seed)``.
    """
    order: list[int] = []
    while len(order) < n:
        epoch, place = divmod(first + len(order), n_samples)
        permutation = torch.randperm(n_samples, generator=generator_at(seed, _ORDER_STREAM, epoch))
        order += permutation[place : place + n - len(order)].tolist()
    return order


def distinct_groups(samples: Sequence[int], size: int) -> list[list[int]]:
    """Divide samples into groups of at most ``size`` that hold none twice, each sample into the first with room for it.

    Without repetitions these are the samples in their order, ``size`` at a time.

    Example:
        >>> distinct_groups([3, 1, 0, 2, 1, 3], 4), distinct_groups([0, 1, 1, 0, 0], 4)
        ([[3, 1, 0, 2], [1, 3]], [[0, 1], [1, 0], [0]])
    """
    groups: list[list[int]] = []
    for sample in samples:
        own = next((group for group in groups if len(group) < size and sample not in group), None)
        if own is None:
            groups.append([sample])
        else:
            own.append(sample)
    return groups


def generator_at(seed: int, stream: int, number: int) -> torch.Generator:
    """Return a CPU generator for one place of a training; ``stream`` is 1 or more, as 0 is the order's."""
    return torch.Generator().manual_seed(_mixed(seed, stream, number))


def as_tensor(value: Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return a part of a training's data as a tensor; what is memory-mapped or read-only is read into memory."""
    return value.to(dtype) if isinstance(value, Tensor) else torch.from_numpy(np.array(value)).to(dtype)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the block draw from the CPU's global generator, seeded, and restore it: for networks' initial weights.

    Example:
        >>> with seeded(0):
        ...     first = torch.rand(3)
        >>> with seeded(0):
        ...     print(torch.equal(first, torch.rand(3)))
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def check_rate(lr: float, name: str = "lr") -> float:
    """Return a learning rate, or raise InputError if it is not positive and finite."""
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
        raise InputError(f"{name}: expected a positive finite number, found {lr!r}")
    return float(lr)


class _State:
    """The file of a training's state."""

    def __init__(
        self, kind: str, arguments: dict[str, Any], stateful: Mapping[str, Stateful], optimizer: torch.optim.Optimizer
    ) -> None:
        assert not set(_RESERVED) & set(stateful)
        self.kind, self.arguments = kind, arguments
        self.parts: dict[str, Stateful] = {**stateful, "optimizer": optimizer}

    @property
    def tag(self) -> str:
        return f"{self.kind.lower()} training"

    def save(self, path: Path, step: int) -> None:
        state = {
            "mmad_bank": self.tag, "arguments": self.arguments, "step": step,
            **{name: part.state_dict() for name, part in self.parts.items()},
        }  # fmt: skip
        with replacing(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path, device: torch.device) -> int:
        """Take the state back and return how many steps it has."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:
            raise FormatError(f"{path}: not the state of a {self.kind} training, or a truncated one") from error
        if not isinstance(state, dict) or state.get("mmad_bank") != self.tag:
            raise FormatError(f"{path}: not the state of a {self.kind} training")
        for name, value in self.arguments.items():
            if state["arguments"].get(name) != value:
                raise FormatError(
                    f"{path}: state of a training with {name} {state['arguments'].get(name)}, now asked for {value}:"
                    " use its arguments, or another file"
                )
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise FormatError(f"{path}: the state of a {self.kind} training, but of other networks") from error
        return int(state["step"])


def _check_loss(loss: Tensor, step: int, steps: int, caller: str) -> None:
    if not bool(torch.isfinite(loss)):
        raise MmadBankError(
            f"{caller}: the loss is {loss.item()} at step {step} of {steps}: look for NaN or infinity in the features,"
            " or lower lr"
        )


def _check_weights(stateful: Mapping[str, Stateful], step: int, steps: int, caller: str) -> None:
    """A finite loss can have a gradient that is not: without this the last step's would reach the file."""
    for part in stateful.values():
        if isinstance(part, nn.Module):
            for name, weights in part.named_parameters():
                if not bool(torch.isfinite(weights).all()):
                    raise MmadBankError(
                        f"{caller}: {name} is not finite after step {step} of {steps}: look for NaN or infinity in the"
                        " features, or lower lr"
                    )


@contextmanager
def _global_generator(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yield what seeds the device's global generator (dropout draws from it), and restore it when the block ends."""

    def reseed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield reseed


def _mixed(seed: int, stream: int, number: int) -> int:
    return ((seed * 1_000_003 + stream) * 1_000_003 + number) % 2**63


def _silent(done: int) -> None:
    """Report to nobody."""


@wording(r"(.+)\.pt")
def _word_state(path: Path, _: str) -> str:
    """Say how far a training is; the state's numbers alone are read."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return f"{state['step']:,} of {state['arguments']['steps']:,} steps of the {state['mmad_bank']}"
