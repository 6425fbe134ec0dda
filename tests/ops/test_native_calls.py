"""What a caller meets around the native core: forks, Ctrl-C, memory that runs out, storages, settings of its own."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from mmad_bank import ops
from mmad_bank.errors import InputError
from mmad_bank.ops._torch.interpolate_features import interpolate_features as interpolate_by_torch
from mmad_bank.ops._torch.knn import TorchIndex

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
PREPARED = """
import os, resource, signal, sys, threading, time
import numpy as np, torch
import mmad_bank as mb
from mmad_bank import ops
torch.set_num_threads(2)
rng = np.random.default_rng(0)
"""


def _run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own: what it tests may end a process, or hang."""
    program = [sys.executable, "-c", PREPARED + textwrap.dedent(body), *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


@ON_LINUX
def test_every_operation_works_in_a_forked_child() -> None:
    found = _run("""
        cloud = torch.rand(1, 900, 3)
        bank = mb.MemoryBank.build(torch.rand(4, 500, 32), 0.1)
        def work():
            ops.k_center_greedy(bank.vectors, 20), ops.farthest_point_sample(cloud, 9)
            ops.knn_group(cloud[0], cloud[0, :99], 5)
            ops.interpolate_features(cloud[0], cloud[0, :9], torch.ones(9, 4))
            return bank.score(torch.ones(2, 784, 32)).image.tolist()
        torch.rand(3000, 3000) @ torch.rand(3000, 300)   # PyTorch's threads are there too
        right = work()
        for generation in range(2):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                torch.rand(1000, 300).sqrt_().sum()
                if work() != right: os._exit(1)
                if generation == 1: os._exit(0)
                grandchild = os.fork()
                if grandchild == 0: os._exit(work() != right)
                os._exit(os.waitpid(grandchild, 0)[1] != 0)
            assert os.waitpid(child, 0)[1] == 0
        assert torch.get_num_threads() == 2
    """)
    assert found.returncode == 0, found.stderr


@ON_LINUX
def test_a_forked_child_forgets_the_default_dtype_of_other_threads() -> None:
    found = _run("""
        from mmad_bank._internal.torch_state import plain_torch
        torch.set_default_dtype(torch.float64)
        inside, go_on = threading.Event(), threading.Event()
        def compute():
            with plain_torch():
                inside.set(), go_on.wait(60)
        thread = threading.Thread(target=compute)
        thread.start(), inside.wait(60)
        child = os.fork()
        if child == 0:
            right = torch.get_default_dtype() == torch.float64
            with plain_torch(): right &= torch.get_default_dtype() == torch.float32
            os._exit(not right or torch.get_default_dtype() != torch.float64)
        status = os.waitpid(child, 0)[1]
        go_on.set(), thread.join()
        assert (status, torch.get_default_dtype()) == (0, torch.float64), status
    """)
    assert found.returncode == 0, found.stderr


@ON_LINUX
@pytest.mark.parametrize(
    "call", ["ops.knn(rows, rows, 1)", pytest.param("ops.k_center_greedy(rows, 100000)", marks=pytest.mark.slow)]
)
def test_interrupts_end_long_calls(call: str) -> None:
    found = _run(f"""
        rows = rng.normal(size=(120000, 256)).astype("f4")
        def interrupt():
            time.sleep(0.5)
            interrupt.at = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            while True:  # a fast machine may be through before the signal comes
                {call}
        except KeyboardInterrupt:
            print(time.monotonic() - interrupt.at)
    """)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 2.0


@ON_LINUX
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "call", ["index.search(rows, 3)", pytest.param("ops.k_center_greedy(rows, 20000)", marks=pytest.mark.slow)]
)
def test_a_program_ends_while_a_daemon_thread_is_in_a_call(call: str, threads: int) -> None:
    found = _run(f"""
        torch.set_num_threads({threads})
        rows = torch.from_numpy(rng.normal(size=(20000, 256)).astype("f4"))
        index = ops.SearchIndex(rows)
        threading.Thread(target=lambda: {call}, daemon=True).start()
        time.sleep(0.5)
    """)
    assert (found.returncode, found.stderr) == (0, "")


@ON_LINUX
def test_memory_that_runs_out_is_a_memory_error() -> None:
    found = _run("""
        bank, queries = (rng.normal(size=(n, 128)).astype("f4") for n in (40000, 400))
        ops.knn(queries[:64], bank[:200], 1)
        index = ops.SearchIndex(bank)
        index.search(queries[:8])
        for room in range(4, 84, 10):
            child = os.fork()
            if child == 0:
                torch.set_num_threads(2)
                size = int(open("/proc/self/statm").read().split()[0]) * 4096
                resource.setrlimit(resource.RLIMIT_AS, (size + room * 2**20,) * 2)
                try:
                    index.search(queries, 50)
                    ops.SearchIndex(bank)
                except MemoryError as error:
                    print(error, flush=True)
                    os._exit(3)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 3), status
    """)
    assert found.returncode == 0, found.stderr
    assert "MB wanted for the search copy of the bank" in found.stdout


@ON_LINUX
def test_threads_that_the_system_refuses_are_done_without() -> None:
    found = _run("""
        bank = rng.normal(size=(3000, 32)).astype("f4")
        right = ops.knn(bank, bank, 2)[1]
        os.setuid(65534) if os.getuid() == 0 else None      # limits do not bind root
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        torch.set_num_threads(7)
        assert torch.equal(ops.knn(bank, bank, 2)[1], right)
    """)
    assert found.returncode == 0, found.stderr


def test_an_error_in_one_thread_reaches_the_caller() -> None:
    rows = torch.rand(5000, 16)
    rows[4321] = float("nan")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(InputError, match="bank: row 4321 holds NaN"):
            ops.SearchIndex(rows)
        with pytest.raises(InputError, match="features: row 4321 holds NaN"):
            ops.k_center_greedy(rows, 9)
    finally:
        torch.set_num_threads(before)


def test_the_callers_storages_stay_resizable() -> None:
    bank, queries, cloud = torch.rand(50, 8), torch.rand(5, 8), torch.rand(40, 3)
    index = ops.SearchIndex(bank)
    index.search(queries)
    ops.k_center_greedy(bank, 3)
    ops.knn_group(cloud, cloud, 2)
    ops.interpolate_features(cloud, cloud, bank[:40].clone())
    ops.farthest_point_sample(cloud[None], 3)
    for tensor in (bank, queries, cloud):
        tensor.untyped_storage().resize_(1 << 22)
    with pytest.raises(InputError, match="bank: expected the vectors that the index was made of"):
        index.search(torch.rand(5, 8))


def test_an_index_is_copied_and_pickled_by_its_vectors() -> None:
    queries = torch.rand(5, 8)
    index = ops.SearchIndex(torch.rand(50, 8), precision="int8")
    right = index.search(queries, 3)
    for other in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert other.precision == "int8"
        assert other.vectors.data_ptr() != index.vectors.data_ptr()
        assert all(map(torch.equal, other.search(queries, 3), right))


def test_answers_do_not_depend_on_the_callers_settings(callers_settings) -> None:
    bank, queries = torch.rand(60, 8), torch.rand(5, 8)
    cloud, centers, features = torch.rand(90, 3), torch.rand(70, 3), torch.rand(70, 6)

    def answers() -> list[torch.Tensor]:
        return [
            *ops.knn(queries, bank, 3),
            *TorchIndex(bank).search(queries, 3),
            ops.k_center_greedy(bank, 9),
            ops.extend_coreset(bank, queries, n_select=4).radii,
            ops.farthest_point_sample(cloud[None], 7),
            ops.knn_group(cloud, centers, 4),
            ops.interpolate_features(cloud, centers, features),
            ops.interpolate_features(cloud, centers, features, k=70, power=1),
            interpolate_by_torch(cloud, centers, features, 70, 1.0, 1e-8, dense=True),
            interpolate_by_torch(cloud, centers, features, 3, 2.0, 1e-8, dense=False),
        ]

    right = answers()
    with callers_settings:
        found = answers()
    for one, other in zip(found, right, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
