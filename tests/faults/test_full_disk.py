"""A short run on full disks; README.md says how to run it for every command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import arguments

pytest.importorskip("tifffile")
pytest.importorskip("timm")
pytest.importorskip("faiss")


def can_mount(folder):
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    return done.returncode == 0 and subprocess.run(["umount", str(folder)], check=False).returncode == 0


def test_a_full_disk_is_said_in_one_line_and_costs_nothing(tmp_path):
    if os.geteuid() != 0 or not can_mount(tmp_path):
        pytest.skip("a file system of limited size needs root")
    done = arguments.call("full_disk.py", "--rooms", "1", "--commands", "extract,build,MultiBank.save,fit-patchcore")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 commands, 1 disks each: 0 faults" in done.stdout
