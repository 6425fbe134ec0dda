"""Banks inside programs: many threads, processes of all kinds, DataLoader workers, asyncio, and banks by file."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patchcore_stand_in import PatchcoreModel
from torch.utils.data import DataLoader, Dataset

from mmad_bank import MemoryBank, MultiBank, ops
from mmad_bank._internal.sending import _packed, _unpacked
from mmad_bank.bank import SharedBank
from mmad_bank.bank.shared import _LOADED
from mmad_bank.errors import FormatError, InputError
from mmad_bank.integrations.anomalib import accelerate
from mmad_bank.integrations.faiss import IndexFlatL2

STARTS = [name for name in ("fork", "forkserver", "spawn") if name in multiprocessing.get_all_start_methods()]
# A forked child is ready at once. The others import everything first.
SLOW_STARTS = [pytest.param(name, marks=pytest.mark.slow if name != "fork" else ()) for name in STARTS]


def features(n: int = 600, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def images(n: int = 6) -> torch.Tensor:
    return features(n * 40, seed=1).reshape(n, 40, 16)


def saved(tmp_path: Path) -> Path:
    MemoryBank(features()).save(tmp_path / "b")
    return tmp_path / "b"


def given(kind: str, tmp_path: Path) -> Any:
    """Return a bank that has searched, a mapped one, or one by file."""
    if kind == "by file":
        return SharedBank(saved(tmp_path))
    if kind == "mapped":
        return MemoryBank.load(saved(tmp_path), mapped=True)
    bank = MemoryBank(features())
    bank.score(images())
    return bank


def score(bank: MemoryBank | SharedBank, image: torch.Tensor) -> float:
    found = bank.bank if isinstance(bank, SharedBank) else bank
    return float(found.score(image[None]).image[0])


class Scored(Dataset[float]):
    """A data set whose samples are scores: its workers have the bank."""

    def __init__(self, bank: MemoryBank | SharedBank) -> None:
        self.bank = bank

    def __len__(self) -> int:
        return len(images())

    def __getitem__(self, number: int) -> float:
        return score(self.bank, images()[number])


@pytest.mark.parametrize("kind", ["searched", "mapped", "by file"])
@pytest.mark.parametrize("start", SLOW_STARTS)
def test_workers_of_a_data_loader_score_alike_and_the_parent_goes_on(start: str, kind: str, tmp_path: Path) -> None:
    bank = given(kind, tmp_path)
    expected = MemoryBank(features()).score(images()).image.tolist()
    for _ in range(2):
        loader = DataLoader(Scored(bank), batch_size=None, num_workers=2, multiprocessing_context=start)
        assert [float(one) for one in loader] == pytest.approx(expected, rel=1e-6)
        assert [score(bank, image) for image in images()] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("start", SLOW_STARTS)
def test_pools_of_processes_score_alike(start: str, tmp_path: Path) -> None:
    expected = MemoryBank(features()).score(images()).image.tolist()
    with ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
        for kind in ("searched", "by file"):
            bank = given(kind, tmp_path)
            assert list(pool.map(score, [bank] * 6, images())) == pytest.approx(expected, rel=1e-6)


def sent_things() -> dict[str, tuple[Any, Any]]:
    """Return what holds an index, and a function that searches with it."""
    bank, flat, model = MemoryBank(features()), IndexFlatL2(16), accelerate(PatchcoreModel())
    flat.add(features().numpy())
    model.memory_bank = features(600, 3)
    queries = features(9, seed=2)
    return {
        "MemoryBank": (bank, lambda one: one.search(queries)[0]),
        "MultiBank": (MultiBank({"a": bank}), lambda one: one["a"].search(queries)[0]),
        "SearchIndex": (ops.SearchIndex(features()), lambda one: one.search(queries)[0]),
        "IndexFlatL2": (flat, lambda one: torch.from_numpy(one.search(queries.numpy(), 1)[0])),
        "anomalib": (model, lambda one: one.nearest_neighbors(queries[:, :3], 1)[0]),
    }


@pytest.mark.parametrize("name", ["MemoryBank", "MultiBank", "SearchIndex", "IndexFlatL2", "anomalib"])
def test_what_is_sent_to_a_process_stays_as_it_is(name: str) -> None:
    """PyTorch moves tensors that are sent to shared memory, in place: an index would search where nothing is."""
    thing, search = sent_things()[name]
    expected = search(thing)
    data = bytes(ForkingPickler.dumps(thing))
    assert torch.equal(search(thing), expected)
    assert getattr(thing, "searches", 0) == 0
    assert torch.equal(search(pickle.loads(data)), expected) or name == "anomalib"  # which is of its own class then


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_every_kind_are_sent(dtype: torch.dtype) -> None:
    given = {
        "rows": torch.ones(2, 3).to(dtype),
        "none": torch.empty(0, 3, dtype=dtype),
        "one": torch.ones(()).to(dtype),
    }
    words, back = _unpacked(pickle.loads(pickle.dumps(_packed(("a", given)))))
    assert words == "a"
    for name, value in given.items():
        assert torch.equal(back[name], value)
        assert back[name].dtype == dtype


@pytest.mark.parametrize("precision", ["auto", "float32", "half", "int8"])
def test_many_threads_score_one_bank(precision: Any, tmp_path: Path) -> None:
    """Also the first time, when its copy for the search is made; single images and batches."""
    MultiBank({"a": MemoryBank(features()), "b": MemoryBank(features(500, seed=3))}).save(tmp_path / "banks")
    banks = MultiBank.load(tmp_path / "banks", bank_precision=precision)
    expected = MultiBank.load(tmp_path / "banks").score({"a": images(), "b": images()})
    together = threading.Barrier(8)

    def work(number: int) -> bool:
        together.wait()
        right = True
        for turn in range(5):
            some = slice(None) if turn % 2 else slice(number % 6, number % 6 + 1)
            found = banks.score({"a": images()[some], "b": images()[some]})
            right &= all(torch.equal(found[name].patch, expected[name].patch[some]) for name in banks)
            right &= all(torch.equal(found[name].nearest, expected[name].nearest[some]) for name in banks)
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_other_threads_run_while_a_bank_is_searched() -> None:
    """The search holds no lock of the interpreter: a server answers meanwhile."""
    bank, queries = MemoryBank(features(40_000, 128)), features(3_000, 128, seed=1)
    bank.search(queries[:1])
    done, turns = threading.Event(), 0

    def search() -> None:
        bank.search(queries)
        done.set()

    thread = threading.Thread(target=search)
    begin = time.perf_counter()
    thread.start()
    while not done.is_set():
        turns += 1
        time.sleep(0.001)
    seconds = time.perf_counter() - begin
    thread.join()
    assert turns > 3 or seconds < 0.02


@pytest.mark.skipif("fork" not in STARTS, reason="needs fork")
def test_children_forked_while_threads_search_score_alike() -> None:
    """In a process of its own: a child that waits for a lock of its parent's threads would hang."""
    code = """
import os, signal, threading, torch
import mmad_bank as mb
torch.set_num_threads(2)
bank, images = mb.MemoryBank(torch.rand(3000, 32)), torch.rand(4, 100, 32)
expected, done = bank.score(images), threading.Event()
def search():
    while not done.is_set(): bank.score(images)
threads = [threading.Thread(target=search) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(not torch.equal(bank.score(images).patch, expected.patch))
    assert os.waitpid(child, 0)[1] == 0
done.set()
for thread in threads: thread.join()
print("alike")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (0, "alike\n"), done.stderr


def test_asyncio_awaits_scores() -> None:
    bank = MemoryBank(features())
    expected = bank.score(images()).image.tolist()

    async def gather() -> list[float]:
        return await asyncio.gather(*(asyncio.to_thread(score, bank, image) for image in images()))

    assert asyncio.run(gather()) == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Banks by file


def test_a_bank_by_file_is_one_bank_in_a_process(tmp_path: Path) -> None:
    path = saved(tmp_path)
    shared = SharedBank(path, bank_precision="int8")
    assert len(pickle.dumps(shared)) < 500
    assert repr(shared) == f"SharedBank({str(path)!r})"
    bank = shared.bank
    assert bank is shared.bank
    assert bank is pickle.loads(pickle.dumps(shared)).bank
    assert bank is SharedBank(path, bank_precision="int8").bank
    assert bank is not SharedBank(path).bank
    assert bank.bank_precision == "int8"
    assert "mapped=" in repr(bank)
    assert "mapped=" not in repr(SharedBank(path, mapped=False).bank)
    with ThreadPoolExecutor(8) as pool:
        assert len({id(one) for one in pool.map(lambda _: pickle.loads(pickle.dumps(shared)).bank, range(16))}) == 1


def test_a_bank_by_file_is_let_go_with_its_last_user(tmp_path: Path) -> None:
    gc.collect()
    before = len(_LOADED)
    shared = SharedBank(saved(tmp_path))
    assert len(shared.bank) == 600
    assert len(_LOADED) == before + 1
    del shared
    gc.collect()
    assert len(_LOADED) == before


def test_a_replaced_file_is_another_bank(tmp_path: Path) -> None:
    old = SharedBank(saved(tmp_path))
    assert len(old.bank) == 600
    MemoryBank(features(70)).save(tmp_path / "b")
    assert len(old.bank) == 600
    assert len(SharedBank(tmp_path / "b").bank) == 70
    assert len(pickle.loads(pickle.dumps(old)).bank) == 70


def test_a_bank_by_file_says_what_is_wrong_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"absent: no such bank file$"):
        SharedBank(tmp_path / "absent")
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    shared = SharedBank("b")
    monkeypatch.chdir("/")
    assert len(shared.bank) == 600  # wherever the process has gone
    gone = pickle.loads(pickle.dumps(shared))
    os.truncate(tmp_path / "b", 100)
    with pytest.raises(FormatError, match=r"/b: "):
        _ = gone.bank
    (tmp_path / "b").unlink()
    with pytest.raises(InputError, match=r"/b: cannot be read"):
        _ = pickle.loads(pickle.dumps(shared)).bank


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_processes_share_the_pages_of_a_file(tmp_path: Path) -> None:
    """The vectors of a mapped bank are the file's pages: none of them is a process's own."""
    MemoryBank(torch.from_numpy(np.random.default_rng(0).random((20_000, 256), np.float32))).save(tmp_path / "big")
    bank = SharedBank(tmp_path / "big").bank
    float(bank.vectors.sum())
    blocks = Path("/proc/self/smaps").read_text().split("\n")
    begin = next(number for number, line in enumerate(blocks) if line.endswith(str(tmp_path / "big")))
    facts = {line.split(":")[0]: line.split()[1] for line in blocks[begin + 1 : begin + 20] if line.endswith("kB")}
    assert int(facts["Rss"]) > 15_000
    assert int(facts["Private_Dirty"]) == int(facts["Anonymous"]) == 0
