"""How many threads the native core works with."""

from __future__ import annotations

import functools
import os

import torch


def thread_count() -> int:
    """Return PyTorch's number of threads, with which the core works too.

    From the first call on, a process forked from this one works with one thread. The core would manage with more, but
    PyTorch's own threads are not there in a forked child, and operators that share their work out would wait for them
    for ever.
    """
    _mind_forks()
    return torch.get_num_threads()


@functools.cache
def _mind_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_work_alone)


def _work_alone() -> None:
    torch.set_num_threads(1)
