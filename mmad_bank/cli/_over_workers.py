"""Selection over Ray workers, where a command is asked for it; and what it says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmad_bank._internal.argument_names import argument_called
from mmad_bank.cli._output import size
from mmad_bank.cli._values import check_device
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.distributed.building import Workers


@contextmanager
def selector_of(
    workers: int | None, address: str | None, scratch: Path | None, device: str = "cpu"
) -> Iterator[Workers | None]:
    """Yield who selects: workers if the options ask for them, on ``device``, or None for this process.

    Raises:
        InputError: --scratch stands alone, or what :func:`mmad_bank.distributed.selecting_over` refuses.
    """
    if workers is None and address is None:
        if scratch is not None:
            raise InputError("--scratch: expected --workers or --address beside it, found neither")
        yield None
        return
    from mmad_bank.distributed import selecting_over

    names = {name: f"--{name}" for name in ("workers", "address", "scratch")} | {"worker_device": "--device"}
    with (
        argument_called(**names),
        selecting_over(workers, address=address, scratch=scratch, worker_device=device) as selector,
    ):
        yield selector


def own_device(device: str, workers: int | None, address: str | None) -> Any:
    """Return the device of this process: with workers the CPU, as the one that is asked for is theirs."""
    return check_device(device if workers is None and address is None else "cpu")


def work_facts(selector: Workers | None) -> dict[str, Any] | None:
    """Return what the workers took, JSON-ready; None if there were none."""
    work = None if selector is None else selector.work
    if work is None:
        return None
    return {
        "count": work.workers,
        "replaced": work.replaced,
        "round_trips": work.traffic.round_trips,
        "bytes_down": work.traffic.down,
        "bytes_up": work.traffic.up,
        "start_bytes": [one.own for one in work.at_start],
        "peak_bytes": [one.peak for one in work.memory],
        "own_bytes": [one.own for one in work.memory],
    }


def work_rows(selector: Workers | None) -> dict[str, str]:
    """Return the same for people."""
    facts = work_facts(selector)
    if facts is None:
        return {}
    died = f", {facts['replaced']:,} died and were made anew" if facts["replaced"] else ""
    return {
        "workers": f"{facts['count']:,}{died}; at most {size(max(facts['peak_bytes']))} of memory each",
        "moved": f"{size(facts['bytes_down'])} to them and {size(facts['bytes_up'])} from them,"
        f" in {facts['round_trips']:,} round trips",
    }
