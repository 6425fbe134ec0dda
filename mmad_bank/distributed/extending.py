"""Banks extended over workers, as :meth:`MemoryBank.extend` does it in one process."""

from __future__ import annotations

from typing import Any

from mmad_bank.bank import MemoryBank
from mmad_bank.bank.memory_bank import Features
from mmad_bank.distributed.building import selecting_over
from mmad_bank.distributed.workers import Folder


def extend(
    bank: MemoryBank,
    features: Features,
    *,
    workers: int | None = None,
    address: str | None = None,
    scratch: Folder | None = None,
    worker_device: str = "cpu",
    **arguments: Any,
) -> int:
    """Add normal samples to a bank as :meth:`MemoryBank.extend` does, over workers: the same rows.

    Args:
        bank: The bank, which is changed.
        features: As for :meth:`MemoryBank.extend`. Paths are opened by the workers.
        workers: As for :func:`mmad_bank.distributed.build`.
        address: As there.
        scratch: As there.
        worker_device: As there.
        arguments: All other arguments of :meth:`MemoryBank.extend`.

    Returns:
        The number of rows added.

    Raises:
        InputError: As for :meth:`MemoryBank.extend` and :func:`mmad_bank.distributed.build`.

    Example:
        >>> import torch
        >>> bank = MemoryBank(torch.rand(10, 16))
        >>> extend(bank, torch.rand(1000, 16) + 5, size=3, workers=2)  # doctest: +SKIP
        3
    """
    with selecting_over(workers, address=address, scratch=scratch, worker_device=worker_device) as selector:
        return bank.extend(features, selector=selector, **arguments)
