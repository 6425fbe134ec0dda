"""Damage every kind of file that the package reads, and see that reading it ends well or with one line.

    python tests/faults/fuzz.py --mutants 100000 --seed 0 [--readers bank,npy] [--keep FOLDER] [--jobs 2]
    python tests/faults/fuzz.py --replay FILE_OR_FOLDER --readers bank

Each mutant is one of these: read; refused, which is an error of the package, on one line that names the file; and the
faults: another exception, a crash, a hang (more than 5 s of computing), memory (more than the file's size and 200 MB),
or code run (a pickle in the file made a file). What is faulty is kept and can be read again with --replay.
"""

from __future__ import annotations

import gc
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import arguments
import readers as catalog

SECONDS = 5  # of computing, for one file
PATIENCE = 60  # seconds by the clock
MEMORY = 200 << 20
ROOM = 2 << 30  # of addresses: what asks for more gets a MemoryError, as on a small machine
GOOD = ("read", "refused")
FAULTS = ("exception", "message", "crash", "hang", "memory", "code")
SHOWN = 2  # of each kind of fault
_PROBED = 20  # mutants between two looks at whether the valid example is still read


def main() -> int:
    parser = arguments.parser_of(__doc__, "mutants", 2000, "readers")
    parser.add_argument("--replay", type=Path, help="Read this file or folder again, with one reader.")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mmad-fuzz-"))
    try:
        chosen = choose(given.readers, str(work / "ran"))
        if given.replay is not None:
            (reader,) = chosen
            return replay(reader, given.replay)
        keep = given.keep or Path(tempfile.gettempdir()) / f"mmad-fuzz-faults-{os.getpid()}"
        faults = fuzz(chosen, given.mutants, given.seed, work, keep)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if faults else 0


def choose(names: str | None, sentinel: str) -> list[catalog.Reader]:
    """Return the readers of these names."""
    return arguments.choose("readers", names, {reader.name: reader for reader in catalog.readers(sentinel)})


def replay(reader: catalog.Reader, path: Path) -> int:
    """Read a kept file with nothing in between."""
    prepare_process()
    print(f"{path}: {reader.name}: {reader.read(path) or 'read'}")
    return 0


def fuzz(chosen: list[catalog.Reader], mutants: int, seed: int, work: Path, keep: Path) -> int:
    """Run all readers, print a table, and return the number of faults."""
    import torch  # noqa: F401 (once, before the forks)

    import mmad_bank.data._images
    import mmad_bank.methods  # noqa: F401

    shares = sum(reader.share for reader in chosen)
    total: Counter[str] = Counter()
    print(f"{'reader':15}" + "".join(f"{name:>11}" for name in ("mutants", *GOOD, *FAULTS, "seconds")), flush=True)
    for reader in chosen:
        begin = time.monotonic()
        count = max(1, round(mutants * reader.share / shares))
        found = Run(reader, seed, work, keep).run(count)
        total += found
        cells = [sum(found.values()), *(found[name] for name in (*GOOD, *FAULTS))]
        print(
            f"{reader.name:15}" + "".join(f"{cell:11}" for cell in cells) + f"{time.monotonic() - begin:11.1f}",
            flush=True,
        )
    cells = [sum(total.values()), *(total[name] for name in (*GOOD, *FAULTS))]
    print(f"{'all':15}" + "".join(f"{cell:11}" for cell in cells))
    return sum(total[name] for name in FAULTS)


class Run:
    """The mutants of one reader, each in a process that was forked for it and for those after it."""

    def __init__(self, reader: catalog.Reader, seed: int, work: Path, keep: Path) -> None:
        self.reader, self.seed, self.keep = reader, seed, keep
        self.work = work / reader.name
        self.sentinel = work / "ran"
        self.example = self.work / f"example{reader.suffix}"
        self.at = mmap.mmap(-1, 8)  # number of the mutant that the worker is at
        self.counts: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def run(self, count: int) -> Counter[str]:
        """Try mutants 0 to count - 1."""
        self.work.mkdir()
        if self._fork(self._make) != 0:
            sys.exit(f"{self.reader.name}: no valid example could be made")
        files = catalog.files_of(self.reader, self.example)
        whole = {path: path.read_bytes() for path in files}
        begin = 0
        while begin < count:
            for path, data in whole.items():  # a worker that died has left its mutant there
                path.write_bytes(data)
            read, write = os.pipe()
            status = self._fork(self._work, files, whole, begin, count, write)
            os.close(write)
            with os.fdopen(read) as lines:
                for line in lines:
                    self.counts.update([line.strip()])
            if status == 0:
                break
            (died,) = struct.unpack("q", self.at[:8])
            outcome = "hang" if status in (signal.SIGPROF, signal.SIGKILL) else "crash"
            self.counts[outcome] += 1
            self._note(outcome, died, f"ended by signal {status}")
            begin = died + 1
        return self.counts

    def _fork(self, function, *arguments) -> int:
        """Run a function in another process; return the signal that it died of, 0 if it ended well, -1 otherwise."""
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                prepare_process()
                function(*arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        last, since = b"", time.monotonic()
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if self.at[:8] != last:
                last, since = self.at[:8], time.monotonic()
            elif time.monotonic() - since > PATIENCE + (120 if function == self._make else 0):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

    def _make(self) -> None:
        self.reader.make(self.example)
        self.reader.read(self.example)

    def _work(self, files: list[Path], whole: dict[Path, bytes], begin: int, count: int, write: int) -> None:
        leave_out_first_weights()
        limit_addresses()
        self.reader.read(self.example)  # imports, caches
        gc.collect()
        gc.freeze()
        for number in range(begin, count):
            self.at[:8] = struct.pack("q", number)
            if number % _PROBED == 0 and number > begin:
                self.reader.read(self.example)
            rng = random.Random(f"{self.seed} {self.reader.name} {number}")
            file = rng.choice(files)
            data = catalog.mutate(self.reader, file, whole[file], rng)
            file.write_bytes(data)
            try:
                outcome, why = judge(self.reader, self.example, len(data), self.sentinel)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if outcome in FAULTS:
                self._note(outcome, number, why)
            file.write_bytes(whole[file])
            os.write(write, f"{outcome}\n".encode())

    def _note(self, outcome: str, number: int, why: str) -> None:
        """Keep what is faulty, as it lies there; a few of each kind are enough."""
        kind = f"{outcome} {re.sub(r'[0-9]+', '#', why)[:60]} {why.rpartition(' at ')[2]}"
        self.seen[kind] += 1
        if self.seen[kind] > SHOWN:
            return
        self.keep.mkdir(parents=True, exist_ok=True)
        kept = self.keep / f"{self.reader.name}-{self.seed}-{number}{self.reader.suffix}"
        if self.example.is_dir():
            shutil.copytree(self.example, kept, dirs_exist_ok=True)
        else:
            shutil.copy(self.example, kept)
        print(f"  {outcome}: {why}\n    python {sys.argv[0]} --readers {self.reader.name} --replay {kept}", flush=True)


def prepare_process() -> None:
    """One thread, no core files, no words of libraries."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")


def leave_out_first_weights() -> None:
    """A network's first weights are replaced by those that are read: drawing them would take most of the time."""
    import torch

    for name in ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_", "normal_", "uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def limit_addresses() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))


def judge(reader: catalog.Reader, example: Path, size: int, sentinel: Path) -> tuple[str, str]:
    """Read a mutant and say what came of it."""
    from mmad_bank.errors import MmadBankError

    before = reset_peak()
    outcome, why = "read", ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process, also within native code
    try:
        reader.read(example)
    except MmadBankError as error:
        outcome, why = "refused", str(error)
        if "\n" in why or example.name not in why:
            outcome, why = "message", f"not one line that names the file: {why!r}"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "mmad_bank" in frame.filename][-1:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (place, *ours))
        outcome, why = "exception", f"{type(error).__name__}: {' '.join(str(error).split())[:150]} at {where}"
        del error
    signal.setitimer(signal.ITIMER_PROF, 0)
    grown = peak() - before
    if grown > MEMORY + size:
        outcome, why = "memory", f"{grown >> 20} MiB for a file of {size} bytes; {why}"
    if sentinel.exists():
        sentinel.unlink()
        outcome, why = "code", f"a pickle in the file was run; {why}"
    return outcome, why


def reset_peak() -> int:
    """Let the peak of the resident memory begin anew, and return it in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    sys.exit(main())
