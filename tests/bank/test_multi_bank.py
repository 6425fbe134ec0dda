import json
import os
import random
import signal
import time

import pytest
import torch

from mmad_bank import MemoryBank, MultiBank
from mmad_bank.errors import FormatError, InputError


def features(n=50, dim=6, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def banks():
    return MultiBank({"rgb": MemoryBank(features()), "xyz": MemoryBank.build(features(90, 4), size=9)})


@pytest.fixture
def patches():
    return {"rgb": features(20, 6, 1).reshape(2, 10, 6), "xyz": features(24, 4, 2).reshape(2, 12, 4)}


def test_each_bank_answers_for_itself(banks, patches):
    scores = banks.score(patches, reweight="patchcore", n_neighbors=4)
    assert list(scores) == ["rgb", "xyz"]
    for name in banks:
        expected = banks[name].score(patches[name], reweight="patchcore", n_neighbors=4)
        assert all(torch.equal(a, b) for a, b in zip(scores[name], expected, strict=True))
    found = banks.search({name: rows[0] for name, rows in patches.items()}, k=2)
    assert torch.equal(found["xyz"][1], banks["xyz"].search(patches["xyz"][0], 2)[1])


def test_reads_like_a_dictionary(banks):
    assert (list(banks), len(banks), "rgb" in banks) == (["rgb", "xyz"], 2, True)
    assert banks.nbytes == banks["rgb"].nbytes + banks["xyz"].nbytes
    assert list(banks.to("cpu")) == ["rgb", "xyz"]
    with pytest.raises(KeyError):
        banks["depth"]


def test_survives_a_folder(tmp_path, banks, patches):
    banks.save(tmp_path / "model" / "banks")
    loaded = MultiBank.load(tmp_path / "model" / "banks")
    assert list(loaded) == ["rgb", "xyz"]
    before, after = banks.score(patches), loaded.score(patches)
    assert all(torch.equal(before[name].image, after[name].image) for name in banks)


def test_saving_again_replaces_the_set(tmp_path, banks):
    banks.save(tmp_path)
    assert MultiBank.load(tmp_path)["rgb"].extend(features(5, 6, 3) + 9, size=5) == 5
    loaded = MultiBank.load(tmp_path)
    loaded["rgb"].extend(features(5, 6, 3) + 9, size=5)
    loaded.save(tmp_path)  # over the files that it is mapped from
    assert [len(bank) for bank in MultiBank.load(tmp_path).values()] == [55, 9]
    MultiBank({"rgb": MemoryBank(features(3))}).save(tmp_path)
    assert [len(bank) for bank in MultiBank.load(tmp_path).values()] == [3]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_save_that_fails_half_way_leaves_the_old_set(tmp_path, banks, monkeypatch):
    banks.save(tmp_path)
    original = MemoryBank.save

    def fail_on_xyz(self, path):
        if "xyz" in str(path):
            raise InputError("disk full")
        original(self, path)

    monkeypatch.setattr(MemoryBank, "save", fail_on_xyz)
    with pytest.raises(InputError, match="disk full"):
        MultiBank({"rgb": MemoryBank(features(3)), "xyz": MemoryBank(features(3))}).save(tmp_path)
    assert [len(bank) for bank in MultiBank.load(tmp_path).values()] == [50, 9]


def test_wrong_names(banks, patches):
    with pytest.raises(InputError, match=r"patches: expected a dictionary with rgb, xyz, found rgb$"):
        banks.score({"rgb": patches["rgb"]})
    with pytest.raises(InputError, match="queries: expected a dictionary with rgb, xyz, found depth, rgb, xyz"):
        banks.search({**patches, "depth": patches["rgb"]})
    with pytest.raises(InputError, match="found Tensor"):
        banks.score(patches["rgb"])
    for wrong in ({}, {"a/b": banks["rgb"]}, {"..": banks["rgb"]}, {"": banks["rgb"]}, {"rgb": features()}):
        with pytest.raises(InputError, match="banks: expected"):
            MultiBank(wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "truncated or altered"),
        ("[]", "altered, expected a JSON object, found a list"),
        ('{"format": "mmad-multibank", "version": 1, "banks": 3}', "altered, expected an object for 'banks', found 3"),
        ('{"format": "mmad-multibank", "version": 1e999, "banks": {}}', "expected finite numbers, found 1e999"),
        ("[" * 100_000, "truncated or altered"),
        ('{"format": "other", "version": 1}', "foreign"),
        ('{"format": "mmad-multibank", "version": 9}', "newer"),
        ('{"format": "mmad-multibank", "version": 1, "banks": {"rgb": "../../etc/passwd"}}', "altered"),
        ('{"format": "mmad-multibank", "version": 1, "banks": {"rgb": 3}}', "altered"),
        ('{"format": "mmad-multibank", "version": 1, "banks": {}}', "altered, expected at least one bank"),
        ('{"format": "mmad-multibank", "version": 1, "banks": {"": "a.safetensors"}}', "altered, expected names of"),
        ('{"format": "mmad-multibank", "version": 1, "banks": {"x ": "a.safetensors"}}', "altered, expected names of"),
    ],
)
def test_damaged_lists(tmp_path, content, message):
    (tmp_path / "banks.json").write_text(content)
    with pytest.raises(FormatError, match=message) as caught:
        MultiBank.load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "banks.json"))


def test_where_the_vectors_are_kept(tmp_path, banks):
    banks.save(tmp_path)
    for moved in (banks.to("cpu", vectors_on="host"), MultiBank.load(tmp_path, vectors_on="host")):
        assert {bank.device for bank in moved.values()} == {torch.device("cpu")}
    searching = banks.to("meta", vectors_on="host")
    assert {bank.device.type for bank in searching.values()} == {"meta"}
    assert {bank.vectors.device.type for bank in searching.values()} == {"cpu"}
    with pytest.raises(InputError, match="vectors_on: expected one of device, host, found 'here'"):
        banks.to("cpu", vectors_on="here")


def test_missing_files(tmp_path, banks):
    with pytest.raises(InputError, match=r"expected a folder with banks\.json"):
        MultiBank.load(tmp_path)
    banks.save(tmp_path)
    (tmp_path / json.loads((tmp_path / "banks.json").read_text())["banks"]["xyz"]).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        MultiBank.load(tmp_path)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, banks):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"expected a new or empty folder or saved banks to replace, found notes.txt"):
        banks.save(tmp_path)
    (tmp_path / "notes.txt").unlink()
    banks.save(tmp_path)
    (tmp_path / "thesis.safetensors").write_text("mine")
    with pytest.raises(InputError, match=r"found thesis\.safetensors in it"):
        banks.save(tmp_path)
    (tmp_path / "thesis.safetensors").rename(tmp_path / "rgb-2.safetensors")  # as a killed version 0.1 left it
    banks.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["banks.json", "rgb.safetensors", "xyz.safetensors"]


def test_a_set_of_version_0_1_is_read_and_replaced(tmp_path, banks):
    banks.save(tmp_path)
    (tmp_path / "rgb.safetensors").rename(tmp_path / "rgb-1.safetensors")
    content = (tmp_path / "banks.json").read_text()
    (tmp_path / "banks.json").write_text(content.replace('"rgb.', '"rgb-1.'))
    assert len(MultiBank.load(tmp_path)["rgb"]) == 50
    banks.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["banks.json", "rgb.safetensors", "xyz.safetensors"]


def test_killed_saves_leave_a_set_and_the_next_one_nothing_else(tmp_path):
    sets = [
        MultiBank({name: MemoryBank(torch.full((400, 8), float(value))) for name in ("rgb", "xyz")}) for value in (1, 2)
    ]
    sets[0].save(tmp_path / "m")
    draw = random.Random(0)
    for _ in range(15):
        pid = os.fork()
        if pid == 0:
            for number in range(100_000):
                sets[number % 2].save(tmp_path / "m")
        time.sleep(draw.uniform(0.0, 0.05))
        if draw.random() < 0.5:  # a reader beside the saver
            loaded = MultiBank.load(tmp_path / "m", mapped=True)
            assert len({float(bank.vectors[0, 0]) for bank in loaded.values()}) == 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        loaded = MultiBank.load(tmp_path / "m")
        assert len({float(bank.vectors[0, 0]) for bank in loaded.values()}) == 1
    sets[0].save(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert len(list((tmp_path / "m").iterdir())) == 3


def test_a_strangers_index_is_left_alone_unless_it_is_trusted(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    MultiBank({"rgb": MemoryBank(features(), index="HNSW8")}).save(tmp_path)
    calls, deserialize = [], faiss.deserialize_index
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: (calls.append(1), deserialize(data))[1])
    MultiBank.load(tmp_path)["rgb"].search(features(3))
    assert not calls
    MultiBank.load(tmp_path, trust_index=True)["rgb"].search(features(3))
    assert calls
