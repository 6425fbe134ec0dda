"""Pieces of work done by several processes come back in order, or with the error that the function has raised."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mmad_bank.distributed import batches
from mmad_bank.distributed.batches import Worker, in_order
from mmad_bank.errors import InputError, MissingExtraError


def making(made: Path, kill_at: int = -1) -> Callable[[], Callable[[int], tuple[int, bytes, str]]]:
    """Return what makes a function that dies the first time that it comes to a number. It is sent by value."""

    def make() -> Callable[[int], tuple[int, bytes, str]]:
        (made / str(os.getpid())).touch()

        def square(number: int) -> tuple[int, bytes, str]:
            if number == kill_at and not (made / "killed").exists():
                (made / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 1000:
                raise MissingExtraError("some", "extra", "the number 1000")
            return number**2, b"\0" * (number % 3), os.getcwd()

        return square

    return make


def test_results_come_in_order_and_a_process_that_dies_is_replaced(cluster: Any, tmp_path: Path) -> None:
    numbers = list(range(40, 0, -1))
    results = in_order(making(tmp_path, kill_at=21), [*numbers, 1000, 7], workers=2)
    found = list(islice(results, 40))
    assert found == [(number**2, b"\0" * (number % 3), os.getcwd()) for number in numbers]
    assert (tmp_path / "killed").exists()
    assert len(list(tmp_path.iterdir())) == 1 + 3  # two processes, and the one in the place of that which died
    with pytest.raises(MissingExtraError, match=r"^the number 1000 needs the package 'some': pip install "):
        next(results)


def refuse() -> Callable[[int], int]:
    raise InputError("bank: expected one, found none")


def test_what_is_wrong_before_the_first_piece_is_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "take_share", lambda processes: None)
    for folder, said in ((os.getcwd(), "bank: expected one, found none"), (f"{tmp_path}/none", f"{tmp_path}/none: ")):
        worker = Worker(refuse, folder, 1)
        for _ in range(2):
            value, error = pickle.loads(worker({"item": [pickle.dumps(3)]})["result"][0])
            assert value is None
            assert str(error).startswith(said)


def test_without_work_nothing_is_started(cluster: Any) -> None:
    assert list(in_order(refuse, [], workers=2)) == []
    with pytest.raises(InputError, match=r"^workers: expected 1 to "):
        list(in_order(refuse, [1], workers=0))
