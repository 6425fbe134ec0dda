"""Ctrl-C and SIGTERM at any moment, also while libraries are imported: one line, no traceback, code 130 or 143."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers import PROGRAM

from mmad_bank.cli import _signals

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")


def stopped(command, wait, number):
    """Start a command and send its group a signal ``wait`` seconds after it could take one."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not has_handlers(process.pid) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def has_handlers(pid):
    """Say whether the program has set its handlers: the interpreter catches SIGINT from its start, but not SIGTERM."""
    with open(f"/proc/{pid}/status") as status:
        caught = next((line for line in status if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_the_first_seconds(tmp_path):
    command = [*PROGRAM, "synth", str(tmp_path / "data"), "--train-images", "200", "--workers", "1"]
    rng = random.Random(0)
    for turn in range(10):
        number = list(CODES)[turn % 2]
        wait = 0.0 if turn < 2 else rng.uniform(0, 1.2)
        code, errors = stopped(command, wait, number)
        assert (code, errors) == (CODES[number], f"error: {_signals._WORDS[number]}\n"), (turn, wait)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_an_extension_that_is_being_loaded_is_waited_for():
    """NumPy's C interface prints what is raised while one extension imports another."""
    program = """
import os, signal, sys, time
from importlib.machinery import ExtensionFileLoader
from mmad_bank.cli import _signals

class Loader(ExtensionFileLoader):
    def exec_module(self, module):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.001)
        print("loaded", flush=True)

def work():
    Loader("name", "path").exec_module(None)
    time.sleep(30)

_signals.run(work)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "loaded\n", "error: terminated\n")


@pytest.mark.slow
def test_workers_say_nothing_and_end_with_the_program(tmp_path):
    """Ctrl-C reaches the whole group, also workers that are still importing; kill -9 reaches the program only."""
    options = ["--train-images", "400", "--image-size", "64", "--workers", "2"]
    command = [*PROGRAM, "synth", str(tmp_path / "data"), *options]
    code, errors = stopped(command, 1.5, signal.SIGINT)
    assert (code, errors) == (130, "error: interrupted\n")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while len(children(process.pid)) < 3:  # two workers and the tracker of their queues
            time.sleep(0.05)
        time.sleep(1.0)
        workers = children(process.pid)
        process.kill()
        process.communicate(timeout=30)  # the pipe closes when the last process that holds it has ended
    deadline = time.monotonic() + 10
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if runs(pid)]


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def test_an_interrupt_where_nothing_can_be_raised_comes_again():
    script = (
        "import time, weakref\n"
        "from mmad_bank.cli import _signals\n"
        "import os, signal\n"
        "class Thing: pass\n"
        "def callback(_): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)\n"
        "def program():\n"
        "    thing = Thing(); seen = weakref.ref(thing, callback); del thing\n"
        "    time.sleep(5)\n"
        "    print('lost')\n"
        "_signals.run(program)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_an_interrupt_that_a_library_turns_into_an_error_is_still_one():
    script = (
        "import os, signal, sys\n"
        "from mmad_bank.cli import _app, main, _signals\n"
        "@_app.app.command()\n"
        "def odd():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException as error:\n        raise ImportError('cannot import') from error\n"
        "sys.argv = ['mmad-bank', 'odd']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "error: terminated\n")


def test_a_second_signal_ends_at_once():
    script = (
        "import os, signal, time\n"
        "from mmad_bank.cli import _signals\n"
        "def program():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"  # as `timeout` does: nothing comes of it
        "        time.sleep(1.1); print('tidied', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(9); print('lost')\n"
        "_signals.run(program)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "tidied\n", "error: interrupted\n")
