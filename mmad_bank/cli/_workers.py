"""Commands whose work several processes do, on Ray."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mmad_bank.cli._values import check_positive
from mmad_bank.errors import InputError


def check_workers(workers: int | None, address: str | None, device: str) -> None:
    """Say before the work what is wrong with ``--workers`` and ``--address``.

    Raises:
        InputError: A number out of range, an address without one, or a device that processes do not share.
        MissingExtraError: Ray is not installed.
    """
    if workers is None:
        if address is not None:
            raise InputError(f"--address: expected --workers beside it, found {address} alone")
        return
    check_positive("--workers", workers)
    if device != "cpu":
        raise InputError(f"--workers: expected --device cpu beside it, found {device}")
    from mmad_bank.distributed.cluster import import_ray

    import_ray()


def cluster_of(workers: int | None, address: str | None) -> AbstractContextManager[Any]:
    """Return what keeps one Ray for all that a command does with it; without ``--workers`` nothing."""
    if workers is None:
        return nullcontext()
    from mmad_bank.distributed.cluster import connect

    return connect(address, workers)
