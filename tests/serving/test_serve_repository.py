"""Models in memory: mapped on first use, let go under a budget, reloaded when they change, and damaged ones by name."""

from __future__ import annotations

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from running_service import calibrated_bank, images, output, running

from mmad_bank import MemoryBank
from mmad_bank.errors import InputError
from mmad_bank.serving.backend import load_place
from mmad_bank.serving.catalog import Catalog, Place
from mmad_bank.serving.problems import Problem
from mmad_bank.serving.repository import Repository
from mmad_bank.serving.settings import Settings


class Counted:
    """What happened to models."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __call__(self, event: str, name: str, seconds: float) -> None:
        self.events.append((event, name))

    def __getitem__(self, event: str) -> int:
        return Counter(one for one, _ in self.events)[event]


def repository(folder: Path, budget: int = 1 << 30) -> tuple[Repository, Counted]:
    events = Counted()
    settings = Settings(folder)
    return Repository(Catalog(folder), lambda place: load_place(place, settings), budget, events), events


def save(path: Path, seed: int = 0, rows: int = 100) -> MemoryBank:
    bank = MemoryBank(torch.rand(rows, 8, generator=torch.Generator().manual_seed(seed)))
    bank.save(path)
    return bank


# Names.


def test_what_in_a_folder_is_a_model(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    (models / "folder").mkdir(parents=True)
    (models / "patchcore").mkdir()
    (models / "patchcore" / "model.json").write_text("{}")
    elsewhere.mkdir()
    save(elsewhere / "out.bank")
    for name in ("a.bank", "b.safetensors", "b.bank", "c d.bank", ".hidden.bank", "line\nbreak.bank"):
        save(models / name)
    (models / "notes.txt").write_text("x")
    (models / "out.bank").symlink_to(elsewhere / "out.bank")
    (models / "in.bank").symlink_to("a.bank")
    (models / "gone.bank").symlink_to("nothing.bank")
    assert Catalog(models).names() == ["a", "b.bank", "b.safetensors", "c d", "in", "patchcore"]
    assert Catalog(models / "a.bank").names() == ["a"]
    assert Catalog(models / "patchcore").names() == ["patchcore"]
    with pytest.raises(InputError, match="expected a folder of models, found nothing"):
        Catalog(tmp_path / "none")


def test_models_come_and_go(tmp_path: Path) -> None:
    models, _ = repository(tmp_path)
    with pytest.raises(Problem, match="found none called 'a'"):
        models.card("a")
    save(tmp_path / "a.bank")
    assert models.card("a").facts["vectors"] == 100
    (tmp_path / "a.bank").unlink()
    with pytest.raises(Problem, match="found none called 'a'"):
        models.card("a")


# Memory.


def test_the_least_recently_used_model_is_let_go(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.bank", rows=1000)
    one, _ = repository(tmp_path)
    with one.lease("a"):
        pass
    size = one.resident()[1]
    models, events = repository(tmp_path, budget=size * 5 // 2)
    for name in ("a", "b", "a", "c"):
        with models.lease(name):
            pass
    assert models.resident() == (2, 2 * size)
    assert [name for event, name in events.events if event == "dropped"] == ["b"]
    models.card("b")  # known still, and nothing is loaded for it
    assert events["loaded"] == 3


def test_a_model_in_use_is_never_let_go(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.bank", rows=1000)
    one, _ = repository(tmp_path)
    with one.lease("a"):
        pass
    models, events = repository(tmp_path, budget=one.resident()[1] * 3 // 2)
    with models.lease("a"), models.lease("b"):
        assert models.resident()[0] == 2
        models.unload("a")
        with pytest.raises(Problem, match="a is unloaded"), models.lease("a"):
            pass
    with models.lease("c"):
        assert models.resident()[0] == 1
    assert events["dropped"] == 2


def test_models_that_load_at_the_same_time_share_the_budget(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"{number}.bank", number, rows=2000)
    place = Catalog(tmp_path).find("0")
    assert place is not None
    one = load_place(place, Settings(tmp_path)).nbytes
    models, events = repository(tmp_path, int(2.5 * one))
    for number in range(2):
        with models.lease(str(number)):
            pass
    taken, loading, load_place_, together = [], [], models._load_place, threading.Barrier(2)

    def slow(place: Place) -> Any:
        together.wait(10)  # both have made room
        taken.append(models.resident()[1])
        loading.append(place.path.name)
        together.wait(10)
        return load_place_(place)

    models._load_place = slow
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: models.lease(name).__enter__(), ["2", "3"]))
    assert sorted(loading) == ["2.bank", "3.bank"]
    assert max(taken) <= one // 2  # both others went before either was loaded
    assert events["dropped"] == 2
    assert models._loading == 0


def test_memory_of_models_that_went_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmad_bank.serving.repository as module

    calls: list[int] = []
    monkeypatch.setattr(module, "give_back_freed_memory", lambda: calls.append(len(calls)))
    for number in range(8):
        save(tmp_path / f"{number}.bank", number)
    models, events = repository(tmp_path, 1 << 30)
    for number in range(8):
        with models.lease(str(number)):
            pass
    models._budget = models.resident()[1]
    assert not calls
    for number in range(8):
        models.unload(str(number))
    assert events["dropped"] == 8
    assert 1 < len(calls) <= 8


def test_a_model_that_is_unloaded_while_it_is_loaded_does_not_stay(tmp_path: Path) -> None:
    save(tmp_path / "a.bank")
    began, go = threading.Event(), threading.Event()

    def slowly(place: Place) -> Any:
        began.set()
        assert go.wait(30)
        return load_place(place, Settings(tmp_path))

    models = Repository(Catalog(tmp_path), slowly, 1 << 30)
    with ThreadPoolExecutor(1) as pool:
        card = pool.submit(models.card, "a")
        assert began.wait(30)
        models.unload("a")
        go.set()
        assert card.result().facts["vectors"] == 100  # it had been asked for before
    assert models.resident() == (0, 0)
    models.load("a")
    assert models.resident()[0] == 1


def test_a_model_that_vanishes_while_it_is_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.bank")
    models, events = repository(tmp_path)

    def vanished(place: Place) -> int:
        place.path.unlink(missing_ok=True)
        return place.path.stat().st_size

    monkeypatch.setattr(Place, "bytes_on_disk", vanished)
    with pytest.raises(Problem, match=r"^model: a cannot be used: FileNotFoundError"), models.lease("a"):
        pass
    assert events["failed"] == 1
    with pytest.raises(Problem, match=r"^model: found none called 'a'"), models.lease("a"):
        pass


def test_a_model_larger_than_the_budget_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.bank", rows=1000)
    models, _ = repository(tmp_path, budget=1000)
    with pytest.raises(Problem, match="bytes in memory, more than --memory 1,000"), models.lease("a"):
        pass
    assert models.index()[0]["state"] == "UNAVAILABLE"


# Change.


def test_a_replaced_model_is_loaded_anew_beside_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bank"
    old = save(path, 0)
    models, events = repository(tmp_path)
    with models.lease("a") as before:
        new = save(path, 1)
        with models.lease("a") as after:
            assert after is not before
            rows = torch.rand(1, 5, 8)
            for served, bank in ((before, old), (after, new)):
                assert torch.equal(served._bank.score(rows).image, bank.score(rows).image)
    assert events["loaded"] == 2


def test_a_damaged_model_harms_no_other(tmp_path: Path) -> None:
    calibrated_bank().save(tmp_path / "good.bank")
    calibrated_bank().save(tmp_path / "cut.bank")
    os.truncate(tmp_path / "cut.bank", 200)
    (tmp_path / "foreign.bank").write_bytes(b"no bank at all")
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "model.json").write_text('{"format": "other"}')
    with running(tmp_path) as service:
        for name, words in (("cut", "truncated"), ("foreign", "foreign"), ("method", "model.json")):
            found = service.infer(name, images(1))
            assert found.status == 500
            assert words in found.json["error"]
        output(service.infer("good", images(1)), "image_scores")
        states = {one["name"]: one["state"] for one in service.ask("POST", "/v2/repository/index").json}
        assert states == {"cut": "UNAVAILABLE", "foreign": "UNAVAILABLE", "good": "READY", "method": "UNAVAILABLE"}
        calibrated_bank().save(tmp_path / "cut.bank")
        output(service.infer("cut", images(1)), "image_scores")  # mended at once


def test_a_model_whose_new_file_is_damaged_goes_on_as_it_was(tmp_path: Path) -> None:
    bank = calibrated_bank()
    bank.save(tmp_path / "tile.bank")
    with running(tmp_path) as service:
        output(service.infer("tile", images(1)), "image_scores")
        (tmp_path / "new").write_bytes(b"half a file")
        (tmp_path / "new").replace(tmp_path / "tile.bank")
        found = output(service.infer("tile", images(2)), "image_scores")
        assert np.array_equal(found, bank.score(images(2)).image.numpy())
        listed = service.ask("POST", "/v2/repository/index").json[0]
        words = "goes on as it was, what replaced it cannot be used: "
        assert (listed["state"], listed["reason"][: len(words)]) == ("READY", words), "as /ready says"
        assert "foreign" in listed["reason"]
        assert service.ask("GET", "/v2/models/tile/ready").status == 200
        assert service.metric("mmad_bank_model_events_total") == 2
        loading = service.ask("POST", "/v2/repository/models/tile/load")
        assert loading.status == 500, "whoever has put it there must not believe that it is served"
        assert loading.json["error"].startswith(f"model: tile {words}")
        assert np.array_equal(output(service.infer("tile", images(2)), "image_scores"), found)
        calibrated_bank().save(tmp_path / "tile.bank")
        assert service.ask("POST", "/v2/repository/models/tile/load").status == 200
        assert service.ask("POST", "/v2/repository/index").json[0]["reason"] == ""


def test_reloads_under_load_lose_no_request(tmp_path: Path) -> None:
    banks = [calibrated_bank(seed) for seed in range(2)]
    rows = images(3)
    known = [bank.score(rows).image.numpy() for bank in banks]
    banks[0].save(tmp_path / "tile.bank")
    seen: list[Any] = []

    def ask() -> None:
        while not done.is_set():
            reply = service.infer("tile", rows)
            values = output(reply, "image_scores") if reply.status == 200 else reply.body
            seen.append(next((i for i, one in enumerate(known) if np.array_equal(one, values)), values))

    done = threading.Event()
    with running(tmp_path) as service:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for one in threads:
            one.start()
        for turn in range(20):
            banks[(turn + 1) % 2].save(tmp_path / "tile.bank")
            done.wait(0.02)
        done.set()
        for one in threads:
            one.join()
        last = output(service.infer("tile", rows), "image_scores")
    assert set(seen) == {0, 1}, [one for one in seen if one not in (0, 1)][:1]
    assert np.array_equal(last, known[0])
