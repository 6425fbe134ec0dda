"""Run every command that writes on a disk that is too small, and look at what it says and leaves.

    sudo python tests/faults/full_disk.py [--rooms 4] [--commands build,fit-patchcore]

Each command replaces an older output on a file system in memory (tmpfs, which needs root) that has room for a part of
the new one only. It must end with one line that says that the disk is full and names the file, the older output must
be there, byte for byte, and nothing else may be left but what a second run goes on from.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kill

PAGE = 4096
NEEDS_NO_FILE = ("bench", "demo")  # bench writes a few bytes, demo runs the other commands
KEPT = ("model.fit", "tune.json.tune", "data/prepared.json")  # what a second run goes on from


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=4, help="Sizes of the disk to try for each command.")
    parser.add_argument("--commands", help="Names, comma-separated (default: all but bench and demo).")
    arguments = parser.parse_args()
    names = [name for name in kill.COMMANDS if name not in NEEDS_NO_FILE]
    names = names if arguments.commands is None else arguments.commands.split(",")
    shares = [(number + 0.5) / arguments.rooms for number in range(arguments.rooms)]
    with tempfile.TemporaryDirectory(prefix="mmad-full-") as folder:
        faults = run(names, shares, Path(folder))
    for fault in faults:
        print(fault)
    print(f"{len(names)} commands, {len(shares)} disks each: {len(faults)} faults")
    return 1 if faults else 0


def run(names: list[str], shares: list[float], folder: Path) -> list[str]:
    """Try commands on disks with room for these shares of their output; return what is wrong."""
    kill.import_all()
    kill.fork(lambda: kill.make_inputs(folder / "inputs", set(names)), folder / "log").must_end_well()
    faults = []
    for name in names:
        trial = kill.Trial(kill.COMMANDS[name], folder / "inputs", folder / name, folder, kill.random.Random(0))
        trial.work.mkdir()
        trial.begin()
        for share in shares:
            faults += [f"{name}, room for {share:.0%}: {fault}" for fault in _try(trial, share)]
        shutil.rmtree(trial.work)
    return faults


def _try(trial: kill.Trial, share: float) -> list[str]:
    trial._put(trial.old)
    before = kill.snapshot(trial.out)
    room = int(share * _pages(trial.new))
    staging = trial.out.with_name("staging")
    trial.out.rename(staging)
    trial.out.mkdir()
    size = (_pages(before) + room + 2) * PAGE
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(trial.out)], check=True)
    try:
        shutil.copytree(staging, trial.out, dirs_exist_ok=True)
        child = trial._child(kill.NEW, overwrite=trial.old is not None)
        code, said = child.wait(), child.log.read_text(errors="replace").strip()
        left = kill.snapshot(trial.out)
    finally:
        subprocess.run(["umount", str(trial.out)], check=True)
        shutil.rmtree(staging)
    return _judge(trial, before, left, code, said)


def _judge(trial: kill.Trial, before: kill.Snapshot, left: kill.Snapshot, code: int, said: str) -> list[str]:
    if code == 0:  # it did fit
        return []
    faults = []
    last = said.splitlines()[-1] if said else ""
    is_program = not callable(trial.command.run(trial.out, trial.inputs, kill.NEW))
    if is_program and (code != 2 or not last.startswith("error: ") or "Traceback" in said):
        faults.append(f"exit code {code}, {said[-300:]!r}")
    if "the disk is full" not in last or str(trial.out) not in last:
        faults.append(f"does not say which file has no room: {last[-300:]!r}")
    for name, data in before.items():
        new = trial.new.get(name)
        whole = name in trial.volatile and name in left and kill.is_whole(name, left[name])
        if name not in left or not (left[name] in (data, new) or whole):
            faults.append(f"{name} is gone or half-written")
    stray = sorted(name for name in set(left) - set(before) if not any(name.startswith(kept) for kept in KEPT))
    return faults + ([f"left {stray[:5]}"] if stray else [])


def _pages(content: kill.Snapshot) -> int:
    """Return how many pages files take."""
    return sum(1 + len(data or b"") // PAGE for data in content.values())


if __name__ == "__main__":
    sys.exit(main())
