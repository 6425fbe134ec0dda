"""Work in a fresh process: its time and memory are its own. Linux only where it reads /proc."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent


def run_fresh(module: str, arguments: dict[str, Any], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a module of this folder in a process of its own with JSON arguments; return the JSON that it prints last.

    ``variables`` are set in its environment.
    """
    command = [sys.executable, "-m", f"parts.{module}", json.dumps(arguments)]
    folders = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **(variables or {}), "PYTHONPATH": os.pathsep.join(folders)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode != 0:
        raise RuntimeError(f"{module}: the process ended with {run.returncode}\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


@dataclass
class Memory:
    """Bytes of this process, at their highest while :func:`watching`."""

    anonymous: int = 0
    """Memory of its own, without file pages: the highest sample (RssAnon, which sums up smaps_rollup's Anonymous)."""
    resident: int = 0
    """Resident set with file pages, by the kernel's own high-water mark (ru_maxrss): nothing escapes it."""


@contextmanager
def watching(every: float = 0.05) -> Iterator[Memory]:
    """Watch this process's memory while the block runs."""
    memory = Memory()
    done = threading.Event()

    def sample() -> None:
        while not done.wait(every):
            memory.anonymous = max(memory.anonymous, anonymous_bytes())

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()
        memory.anonymous = max(memory.anonymous, anonymous_bytes())
        memory.resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def anonymous_bytes() -> int:
    """Return this process's anonymous memory; 0 where /proc does not tell."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def available_bytes() -> int:
    """Return the memory that the system can give without swapping; 0 where /proc does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def drop_from_cache(path: Path) -> None:
    """Ask the kernel to forget a file's pages, so that the next reader gets them from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(path: Path) -> float | None:
    """Return which part of a file is in the page cache (mincore); None where the system does not tell."""
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            size = ctypes.c_size_t(path.stat().st_size)
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), size, resident) != 0:
                return None
        except AttributeError:
            return None
        finally:
            del anchor
    return sum(page & 1 for page in resident) / pages


def reading_seconds(path: Path, readers: int = 1, *, direct: bool = False) -> float:
    """Return the seconds that one plain read of a file takes, by threads that each read a part from end to end.

    ``direct`` reads past the system's cache, in requests of 8 MiB, where the system can.
    """
    size = path.stat().st_size
    flags = os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if direct else 0)
    step = (8 if direct else 64) << 20
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    buffers = [mmap.mmap(-1, step, **private) for _ in range(readers)]  # begin on a page, as direct reads ask for
    for buffer in buffers if hasattr(mmap, "MADV_HUGEPAGE") else ():
        buffer.madvise(mmap.MADV_HUGEPAGE)  # a request is a few pieces then, not thousands
    share = -(-size // readers // mmap.PAGESIZE) * mmap.PAGESIZE

    def read(reader: int) -> None:
        file = os.open(path, flags)
        try:
            at, end = reader * share, min(size, (reader + 1) * share)
            while at < end and (got := os.preadv(file, [buffers[reader]], at)):
                at += got
        finally:
            os.close(file)

    begin = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))
    return time.perf_counter() - begin
