import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmad_bank import MemoryBank
from mmad_bank.bank import file_format
from mmad_bank.errors import FormatError, InputError


def features(n=300, dim=12, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def path(tmp_path):
    MemoryBank.build(features(), size=40).save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def rewrite(path, change):
    """Save the file again with a changed header, its checksum made right."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["mmad_bank"])
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(header, tensors)
    header.pop("checksum")
    header["checksum"] = file_format._header_checksum(header)
    save_file(tensors, path, {"mmad_bank": json.dumps(header)})


def retyped(header, tensors, name, dtype):
    """Give a tensor another dtype, and say so everywhere."""
    tensors[name] = tensors[name].to(dtype)
    header["tensors"][name] = file_format._table(tensors)[name]


def refused(path, word, **arguments):
    with pytest.raises(FormatError) as caught:
        MemoryBank.load(path, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{path}: {word}"), message
    assert "\n" not in message
    return message


class TestRoundTrip:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"projection_dim": 5, "seed": 9},
            {"standardize": True},
            {"standardize": (0.1, 1 / 3)},
            {"extractor": "DINO ViT-B/8 ä"},
            {"index": "IVF4,Flat"},
        ],
        ids=str,
    )
    def test_everything_comes_back(self, tmp_path, arguments):
        bank = MemoryBank.build(features().reshape(10, 30, 12), size=40, start=3, **arguments)
        bank.save(tmp_path / "b")
        loaded = MemoryBank.load(tmp_path / "b")
        assert torch.equal(loaded.vectors, bank.vectors)
        assert torch.equal(loaded.source_rows, bank.source_rows)
        assert loaded.metadata() == bank.metadata()
        assert (loaded.radius, loaded.standardization) == (bank.radius, bank.standardization)
        assert loaded.provenance() == bank.provenance()
        patches = features(20, seed=4).reshape(2, 10, 12)
        for a, b in zip(loaded.score(patches), bank.score(patches), strict=True):
            assert torch.equal(a, b)

    def test_extends_without_the_dump_as_the_original_does(self, tmp_path):
        bank = MemoryBank.build(features(), size=40, projection_dim=5, seed=9, standardize=True)
        bank.save(tmp_path / "b")
        loaded = MemoryBank.load(tmp_path / "b")
        assert loaded.extend(features()) == 0
        new = features(60, seed=1) + 1
        assert loaded.extend(new) == bank.extend(new) > 0
        assert torch.equal(loaded.vectors, bank.vectors)
        loaded.save(tmp_path / "b")  # over the file that it is mapped from
        again = MemoryBank.load(tmp_path / "b")
        assert torch.equal(again.vectors, bank.vectors)
        assert again.provenance() == bank.provenance()

    def test_is_a_plain_safetensors_file(self, path):
        tensors = load_file(path)
        assert {name: tensor.dtype for name, tensor in tensors.items()} == {
            "vectors": torch.float32, "source_rows": torch.int64,
        }  # fmt: skip

    def test_same_bank_same_bytes(self, tmp_path, path):
        MemoryBank.build(features(), size=40).save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()

    def test_vectors_stay_on_disk_until_they_are_touched(self, path):
        bank = MemoryBank.load(path, mapped=True)
        assert bank.nbytes == bank.source_rows.nbytes
        with open("/proc/self/maps") as maps:
            ranges = [line.split("-")[0] for line in maps if line.rstrip().endswith(str(path))]
        assert ranges
        bank.search(features(1))
        assert bank.nbytes == bank.source_rows.nbytes + bank.search_index.nbytes

    def test_writing_to_loaded_vectors_leaves_the_file_alone(self, path):
        before = path.read_bytes()
        MemoryBank.load(path).vectors.zero_()
        assert path.read_bytes() == before

    def test_links_stay_links(self, tmp_path, path):
        (tmp_path / "link").symlink_to(path)
        MemoryBank(features(5)).save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert len(MemoryBank.load(path)) == 5


class TestRefused:
    @pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.5, 0.9, 0.9999])
    def test_truncated(self, path, share):
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(max(9, int(size * share)))
        refused(path, "truncated")

    def test_empty_and_tiny(self, path):
        path.write_bytes(b"")
        refused(path, "truncated")
        path.write_bytes(b"abc")
        refused(path, "foreign")

    def test_altered_in_any_place(self, path):
        content = bytearray(path.read_bytes())
        for position in np.linspace(10, len(content) - 1, 200).astype(int):
            changed = bytearray(content)
            changed[position] ^= 1
            path.write_bytes(changed)
            with pytest.raises(FormatError, match=r"altered|foreign|newer|truncated"):
                MemoryBank.load(path)
        path.write_bytes(content)
        assert len(MemoryBank.load(path)) == 40

    def test_altered_vectors_name_the_tensor_unless_verification_is_left_out(self, path):
        content = bytearray(path.read_bytes())
        content[-1000] ^= 4
        path.write_bytes(content)
        assert "'vectors'" in refused(path, "altered") or "'source_rows'" in refused(path, "altered")
        assert len(MemoryBank.load(path, verify=False)) == 40

    def test_altered_header(self, path):
        content = path.read_bytes().replace(b'\\"seed\\"', b'\\"sEed\\"').replace(b"euclidean", b"manhattan")
        path.write_bytes(content)
        refused(path, "altered", verify=False)

    def test_bytes_added_at_the_end(self, path):
        with path.open("ab") as file:
            file.write(b"more")
        refused(path, "altered")

    def test_newer_version(self, path):
        rewrite(path, lambda header, tensors: header.update(version=2))
        assert "version 2" in refused(path, "newer")

    @pytest.mark.parametrize(
        "change",
        [
            lambda header, tensors: header.pop("dim"),
            lambda header, tensors: header.update(vectors=41),
            lambda header, tensors: header.update(sources=3),
            lambda header, tensors: header.update(sources=[{"file": "x"}]),
            lambda header, tensors: header.update(standardisation={"mean": 0.0, "std": -1.0}),
            lambda header, tensors: header.update(projection={"dim": 10**9, "seed": 0}),
            lambda header, tensors: header.update(radius="wide"),
            lambda header, tensors: header.update(tensors=[]),
            lambda header, tensors: header["tensors"].pop("vectors"),
            lambda header, tensors: header["tensors"]["vectors"].update(shape=[12, 40]),
            lambda header, tensors: tensors.update(more=torch.zeros(3)),
            lambda header, tensors: tensors.pop("source_rows"),
            lambda header, tensors: retyped(header, tensors, "vectors", torch.bfloat16),
            lambda header, tensors: retyped(header, tensors, "source_rows", torch.bool),
            lambda header, tensors: header.update(index=5),
            lambda header, tensors: header.update(index="IVF99999999,Flat"),
            lambda header, tensors: header.update(index="PQ1x24"),
            lambda header, tensors: header.update(index="HNSW" + "9" * 5000),
            lambda header, tensors: header.update(index="Flat," * 100),
            lambda header, tensors: header.update(index="Flat\0"),
            lambda header, tensors: header.update(index="Flat\ud800"),
            lambda header, tensors: header.update(sources=[]),
            lambda header, tensors: header["sources"][0].update(rows=10),
            lambda header, tensors: header.update(sources=[{"file": "x", "rows": 2**61, "patches": None}] * 3),
            lambda header, tensors: header.update(extractor=5),
            lambda header, tensors: header.update(standardisation=[0.0, 1.0]),
            lambda header, tensors: header.update(standardisation={"mean": "0", "std": 1.0}),
            lambda header, tensors: header.update(projection=[3, 0]),
            lambda header, tensors: header.update(projection={"dim": 3, "seed": -1}),
            lambda header, tensors: header.update(sources=[{"file": "x", "rows": 2**70, "patches": None}]),
            lambda header, tensors: header.update(sources=[{"file": 5, "rows": 300, "patches": None}]),
            lambda header, tensors: header.update(sources=[{"file": "x", "rows": 300, "patches": 0}]),
            lambda header, tensors: header.update(tensors={name: [1] for name in header["tensors"]}),
            lambda header, tensors: header.update(dim="12"),
            lambda header, tensors: header.update(dim=True),
            lambda header, tensors: header.update(radius=True),
            lambda header, tensors: header.update(version="one"),
            lambda header, tensors: header.update(version=0),
        ],
    )
    def test_headers_that_describe_no_bank(self, path, change):
        rewrite(path, change)
        refused(path, "altered")

    @pytest.mark.parametrize(
        "text",
        ["[" * 100_000, '{"a":' * 5000, "[]", "3", '{"format": "mmad-bank", "version": 1e999}', '{"version": NaN}',
         '{"format": "mmad-bank", "version": ' + "9" * 5000 + "}", '{"format": "mmad-bank"}', "", '"\\ud800"'],
    )  # fmt: skip
    def test_texts_that_are_no_header(self, path, text):
        save_file({"vectors": torch.rand(3, 4)}, path, {"mmad_bank": text})
        assert len(refused(path, "")) < 500

    @pytest.mark.parametrize(
        "table",
        [b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"__metadata__":3}', b'{"a":{"data_offsets":[0,1e999]}}',
         b'{"a":{"data_offsets":[0,' + b"9" * 400 + b"]}}", b"{\xff}", b'{"__metadata__":{"mmad_bank":7}}'],
    )  # fmt: skip
    def test_tables_that_are_none(self, path, table):
        path.write_bytes(len(table).to_bytes(8, "little") + table)
        assert len(refused(path, "")) < 500

    def test_a_header_alone_takes_no_memory(self, tmp_path):
        bank = MemoryBank(np.ones((1, 12000), np.float32))
        header = {**bank.metadata(), "projection": {"dim": 12000, "seed": 0}}
        file_format.write(tmp_path / "b", header, {"vectors": bank.vectors, "source_rows": bank.source_rows})
        code = """
            import resource, sys, mmad_bank
            mmad_bank.MemoryBank
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(mmad_bank.MemoryBank.load(sys.argv[1]).projection.dim_out)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "b")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        dim, kibibytes = done.stdout.split()
        assert (dim, int(kibibytes) < 50_000) == ("12000", True)

    def test_foreign_safetensors(self, path):
        save_file({"vectors": torch.rand(3, 4)}, path)
        refused(path, "foreign")
        save_file({"vectors": torch.rand(3, 4)}, path, {"mmad_bank": json.dumps({"format": "other", "version": 1})})
        refused(path, "foreign")

    def test_other_files(self, path):
        path.write_text("a long enough text file that is no bank at all\n" * 10)
        refused(path, "foreign")
        np.save(path.with_suffix(".npy"), np.zeros((3, 4)))
        refused(path.with_suffix(".npy"), "foreign")
        with pytest.raises(InputError, match="cannot be read"):
            MemoryBank.load(path.parent)
        with pytest.raises(InputError, match=r"cannot be read \(No such file"):
            MemoryBank.load(path.parent / "nowhere")

    def test_pickles_are_never_run(self, path, tmp_path):
        fuse = tmp_path / "fuse"

        class Bomb:
            def __reduce__(self):
                return (open, (str(fuse), "w"))

        legacy, modern, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
        torch.save(Bomb(), legacy, _use_new_zipfile_serialization=False)
        torch.save(Bomb(), modern)
        np.savez(archive, np.array([Bomb()], object))
        contents = [pickle.dumps(Bomb(), protocol) for protocol in (2, 4, 5)]
        for content in [*contents, legacy.getvalue(), modern.getvalue(), archive.getvalue()]:
            path.write_bytes(content)
            assert "pickle" in refused(path, "foreign")
        path.write_bytes(pickle.dumps(Bomb(), 0))
        refused(path, "foreign")
        assert not fuse.exists()


@pytest.mark.parametrize(("index", "value"), [("exact", "nan"), ("exact", "inf"), ("IVF4,Flat", "nan")])
def test_vectors_that_cannot_be_searched_name_the_file(tmp_path, index, value):
    if index != "exact":
        pytest.importorskip("faiss")
    bank = MemoryBank(features(40))
    vectors = bank.vectors.clone()
    vectors[7, 3] = float(value)
    header = {**bank.metadata(), "index": index}
    file_format.write(tmp_path / "b", header, {"vectors": vectors, "source_rows": bank.source_rows})
    loaded = MemoryBank.load(tmp_path / "b")
    with pytest.raises(FormatError, match=r"/b: altered, bank: row 7 "):
        loaded.search(features(3))


class TestAFileThatChanges:
    """A bank that was loaded, and what happens to its file afterwards."""

    @pytest.mark.parametrize("mapped", [True, False, None])
    def test_replaced_or_removed(self, path, mapped):
        bank = MemoryBank.load(path, mapped=mapped)
        expected = bank.vectors.clone()
        MemoryBank(features(9)).save(path)
        assert torch.equal(bank.vectors, expected)
        path.unlink()
        assert torch.equal(bank.search(expected)[1][:, 0], torch.arange(40))

    @pytest.mark.parametrize("change", ["overwritten", "cut"])
    def test_changed_in_place(self, path, tmp_path, change):
        bank, apart = MemoryBank.load(path, mapped=True), MemoryBank.load(path)
        expected = bank.vectors.clone()
        bank.search(expected)
        MemoryBank(features(40, seed=9)).save(tmp_path / "other")
        if change == "cut":
            os.truncate(path, 4096)
        else:
            path.write_bytes((tmp_path / "other").read_bytes())
        for use in (
            lambda: bank.search(expected), lambda: bank.score(expected[None]), lambda: bank.vectors,
            lambda: bank.extend(features(5)), lambda: bank.save(tmp_path / "copy"), lambda: pickle.dumps(bank),
        ):  # fmt: skip
            with pytest.raises(InputError, match=r"bank\.safetensors: was changed in place"):
                use()
        assert torch.equal(apart.search(expected)[1][:, 0], torch.arange(40))  # a small bank is in memory

    def test_large_banks_are_mapped_and_small_ones_read(self, path, monkeypatch):
        assert MemoryBank.load(path).nbytes > MemoryBank.load(path).vectors.nbytes
        monkeypatch.setattr(file_format, "LARGEST_READ", 1000)
        assert MemoryBank.load(path).nbytes == MemoryBank.load(path).source_rows.nbytes
        assert MemoryBank.load(path, mapped=False).nbytes > MemoryBank.load(path).vectors.nbytes

    def test_a_load_beside_a_replacement_is_of_one_file(self, tmp_path):
        path = tmp_path / "b"
        banks = [
            MemoryBank(torch.full((500, 16), float(i)) + 0.1 * torch.rand(500, 16), standardization=(0.0, float(i)))
            for i in (1, 2)
        ]
        banks[0].save(path)
        pid = os.fork()
        if pid == 0:
            try:
                for number in range(10_000):
                    banks[number % 2].save(path)
            finally:
                os._exit(0)
        try:
            for number in range(150):
                bank = MemoryBank.load(path, mapped=bool(number % 2))
                assert bank.standardization.std == int(bank.vectors[0, 0])
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def test_two_savers_at_once(self, path):
        bank = MemoryBank(features(40, seed=3))
        children = []
        for _ in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    for _ in range(20):
                        bank.save(path)
                except BaseException:
                    os._exit(1)
                os._exit(0)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
        assert leftovers(path.parent) == []


def leftovers(folder):
    return sorted(file.name for file in folder.iterdir() if file.name != "bank.safetensors")


class TestWriting:
    def test_a_full_disk_leaves_the_old_bank(self, path):
        code = """
            import resource, sys, torch
            from mmad_bank import MemoryBank
            from mmad_bank.errors import InputError
            bank = MemoryBank(torch.zeros(2000, 50))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                bank.save(sys.argv[1])
            except InputError as error:
                print(error)
        """
        before = path.read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"{path}: cannot be written (")
        assert "File too large" in done.stdout
        assert done.stdout.count("\n") == 1
        assert path.read_bytes() == before
        assert leftovers(path.parent) == []

    def test_no_space_left(self, path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("os.fsync", full)
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"bank\.safetensors: cannot be written \(the disk is full: No space left"):
            MemoryBank(features(5)).save(path)
        assert path.read_bytes() == before
        assert leftovers(path.parent) == []

    def test_a_killed_build_leaves_the_old_bank(self, path):
        code = """
            import os, sys, time, torch
            from mmad_bank import MemoryBank
            import mmad_bank._internal.files as files
            def stop(descriptor):
                print("written", flush=True)
                time.sleep(60)
            os.fsync = stop  # all bytes are written, the name is not
            MemoryBank.build(torch.rand(500, 20), size=50).save(sys.argv[1])
        """
        before = path.read_bytes()
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout.readline() == "written\n"
            child.send_signal(signal.SIGKILL)
        assert path.read_bytes() == before
        assert len(MemoryBank.load(path)) == 40
        MemoryBank(features(5)).save(path)
        assert len(MemoryBank.load(path)) == 5

    def test_ctrl_c_leaves_no_partial_file(self, path):
        code = """
            import os, sys, time, torch
            from mmad_bank import MemoryBank
            def stop(descriptor):
                print("written", flush=True)
                time.sleep(60)
            os.fsync = stop
            MemoryBank(torch.rand(500, 20)).save(sys.argv[1])
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as child:  # fmt: skip
            assert child.stdout.readline() == "written\n"
            child.send_signal(signal.SIGINT)
        assert leftovers(path.parent) == []
        assert len(MemoryBank.load(path)) == 40

    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"b: cannot be written \(its folder .*nowhere does not exist"):
            MemoryBank(features(5)).save(tmp_path / "nowhere" / "b")


def test_verification_reads_at_more_than_a_trickle(tmp_path):
    """A guard against an accidental slow path, hundreds of times slower; speed itself is measured in benchmarks."""
    bank = MemoryBank(torch.zeros(20_000, 500))
    bank.save(tmp_path / "b")
    begin = time.perf_counter()
    MemoryBank.load(tmp_path / "b")
    assert time.perf_counter() - begin < 2.0


@pytest.mark.parametrize("precision", ["auto", "float32", "half", "int8"])
def test_the_precision_of_the_search_copy_is_kept(tmp_path, precision):
    """It is the default of load, which may be told another one; the answers are the same."""
    rows = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    built = MemoryBank.build(rows, size=100, bank_precision=precision)
    built.save(tmp_path / "bank")
    loaded, other = MemoryBank.load(tmp_path / "bank"), MemoryBank.load(tmp_path / "bank", bank_precision="half")
    assert (loaded.bank_precision, other.bank_precision) == (precision, "half")
    assert torch.equal(loaded.search(rows, 3)[1], other.search(rows, 3)[1])
    built.search(rows)  # which makes the copy
    assert loaded.search_index.nbytes == built.search_index.nbytes


def test_banks_of_two_precisions_are_two_files(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    for precision in ("half", "int8"):
        MemoryBank.build(rows, size=9, bank_precision=precision).save(tmp_path / precision)
    assert (tmp_path / "half").read_bytes() != (tmp_path / "int8").read_bytes()


def test_a_former_name_of_an_argument_still_works(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    with pytest.warns(DeprecationWarning, match="build: precision is bank_precision now"):
        bank = MemoryBank.build(rows, size=9, precision="int8")
    assert bank.bank_precision == "int8"
    with pytest.raises(TypeError, match="found both"):
        MemoryBank.build(rows, size=9, precision="int8", bank_precision="half")
