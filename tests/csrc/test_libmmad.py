"""libmmad, built and installed by CMake, says what Python says: files, searches, scores, verdicts, origins."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]
import libmmad
import mutators
from libmmad import Bank, Library, Refused, Rule, Threshold, rule_of

from mmad_bank import MemoryBank, _core, ops
from mmad_bank import __version__ as version
from mmad_bank.bank import file_format
from mmad_bank.errors import FormatError, InputError

EXAMPLES = HERE.parents[1] / "examples"
FORMATS = HERE.parent / "formats"
FUZZED = int(os.environ.get("MMAD_BANK_FUZZ_ROUNDS", "2000"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux only"),
    libmmad.NEEDS_CMAKE,
]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return libmmad.build(tmp_path_factory.mktemp("libmmad"), "-DMMAD_BUILD_TESTS=ON")


@pytest.fixture(scope="module")
def library(prefix: Path) -> Library:
    return Library(next(prefix.glob("lib*/libmmad.so")))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calibrated(folder: Path, n: int = 60, **arguments: object) -> tuple[MemoryBank, Path]:
    """Build, calibrate and save a bank of features with copies; return it and its file."""
    features = drawn(20, 36, 33)
    features[3] = features[5]
    features[:, 7] = 0.0
    bank = MemoryBank.build(features, ratio=0.4, **arguments)
    bank.calibrate(drawn(n, 36, 33, seed=1))
    bank.save(folder / "own.bank")
    return bank, folder / "own.bank"


class TestLibrary:
    def test_one_version_everywhere(self, library: Library, prefix: Path) -> None:
        assert library.version().decode() == version
        (real,) = (path for path in prefix.glob("lib*/libmmad.so.*") if not path.is_symlink())
        assert real.name == f"libmmad.so.{version}"
        assert library.instruction_set().decode() == _core.active_isa()

    def test_exports_the_header_and_nothing_else(self, prefix: Path) -> None:
        listed = libmmad.run("nm", "-D", "--defined-only", next(prefix.glob("lib*/libmmad.so")))
        assert {line.split()[-1] for line in listed.splitlines()} == set(libmmad._FUNCTIONS)
        header = (prefix / "include/mmad/mmad.h").read_text()
        assert all(f"{name}(" in header for name in libmmad._FUNCTIONS)
        assert header.count("MMAD_API ") == len(libmmad._FUNCTIONS) + 1  # and its definition

    def test_the_checks_in_cpp_pass(self, prefix: Path) -> None:
        libmmad.run("ctest", "--test-dir", prefix.parent / "build", "--output-on-failure")

    def test_the_header_is_plain_c(self, prefix: Path, tmp_path: Path) -> None:
        source = tmp_path / "only.c"
        source.write_text("#include <mmad/mmad.h>\nint main(void) { return 0; }\n")
        flags = ("-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", f"-I{prefix / 'include'}")
        libmmad.run("gcc", *flags, "-c", source, "-o", tmp_path / "only.o")

    def test_the_lines_of_the_documentation_compile(self, prefix: Path, tmp_path: Path) -> None:
        page = (HERE.parents[1] / "docs/how-to/c-and-cpp.md").read_text(encoding="utf-8")
        (block,) = re.findall(r"^```c\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        include, lines = block.split("\n", 1)
        begin = "int complain(const char*);\nint score(const float* patches);\nint score(const float* patches) {"
        (tmp_path / "lines.c").write_text(f"{include}\n{begin}\n{lines}\nreturn 0; }}\n")
        libmmad.run("gcc", "-Wall", "-Wextra", "-Werror", f"-I{prefix / 'include'}", "-c", "lines.c", cwd=tmp_path)

    def test_pkg_config_leads_to_it(self, prefix: Path) -> None:
        (file,) = prefix.glob("lib*/pkgconfig/mmad.pc")
        words = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line and ":" not in line)
        root = Path(words["prefix"].replace("${pcfiledir}", str(file.parent)))
        for name, found in (("libdir", "libmmad.so"), ("includedir", "mmad/mmad.h")):
            assert (root / words[name].removeprefix("${prefix}/") / found).exists()


class TestScores:
    @pytest.mark.parametrize(
        "arguments",
        [{}, {"standardize": True}, {"standardize": (0.1, 1 / 3)},
         *({"bank_precision": one} for one in ("float32", "half", "int8"))],
        ids=str,
    )  # fmt: skip
    def test_are_pythons_to_the_bit(self, library: Library, tmp_path: Path, arguments: dict[str, object]) -> None:
        bank, path = calibrated(tmp_path, **arguments)
        own = library.open(path)
        patches = drawn(40, 250, 33, seed=2) * 3
        patches[4, 3] = patches[4, 9] = 50.0  # two patches share the largest score
        patches[6] = drawn(20, 36, 33)[5, :1]  # all patches are equal, and of the bank
        patches[8:20, 100:] = 0.0  # enough equal ones that they are searched once
        for reweight in ("m3dm", "patchcore", "max", "top"):
            for n_neighbors, divisor in ((None, 1.0), (5, 1.0), (None, 7.3), (10**6, 1000.0)):
                said = bank.score(patches, reweight=reweight, n_neighbors=n_neighbors, divisor=divisor)
                rule = rule_of(reweight, n_neighbors or 0, divisor)
                for threads in (1, 3):
                    for name, found in zip(said._fields, own.score(patches.numpy(), rule, threads), strict=True):
                        assert np.array_equal(found, getattr(said, name).numpy()), (reweight, name)

    def test_search_is_pythons(self, library: Library, tmp_path: Path) -> None:
        bank, path = calibrated(tmp_path, standardize=True)
        queries = drawn(50, 33, seed=3)
        for k in (1, 7, len(bank)):
            distances, rows = bank.search(queries, k)
            found = library.open(path).search(queries.numpy(), k)
            assert np.array_equal(found[0], distances.numpy())
            assert np.array_equal(found[1], rows.numpy())

    def test_many_threads_search_one_bank(self, library: Library, tmp_path: Path) -> None:
        bank, path = calibrated(tmp_path)
        own, patches = library.open(path), drawn(3, 36, 33, seed=4)
        said = [one.numpy() for one in bank.score(patches)]
        wrong: list[object] = []

        def work() -> None:
            for _ in range(20):
                found = own.score(patches.numpy(), threads=2)
                wrong.extend(a for a, b in zip(found, said, strict=True) if not np.array_equal(a, b))

        callers = [threading.Thread(target=work) for _ in range(6)]
        for one in callers:
            one.start()
        for one in callers:
            one.join()
        assert not wrong

    def test_a_faiss_bank_is_searched_exactly(self, library: Library, tmp_path: Path) -> None:
        pytest.importorskip("faiss")
        bank = MemoryBank.build(drawn(400, 8), size=100, index="IVF8,Flat", nprobe=1)
        bank.save(tmp_path / "b")
        own = library.open(tmp_path / "b")
        assert own.get("index") == b"IVF8,Flat"
        said = MemoryBank(bank.vectors).search(drawn(20, 8, seed=1))
        assert np.array_equal(own.search(drawn(20, 8, seed=1).numpy(), 1)[1], said[1].numpy())

    def test_knn_and_selection(self, library: Library) -> None:
        rows, queries = drawn(300, 17).numpy(), drawn(9, 17, seed=1).numpy()
        for precision, name in enumerate(libmmad.PRECISION[1:], start=1):
            distances, found = np.empty((9, 4), np.float32), np.empty((9, 4), np.int64)
            library.call("knn", queries, 9, rows, 300, 17, 4, precision, 2, distances, found)
            said = ops.knn(queries, rows, 4, precision=name)
            assert np.array_equal(distances, said[0].numpy())
            assert np.array_equal(found, said[1].numpy())
        selected, radii, covering = np.empty(80, np.int64), np.empty(80), ctypes.c_double()
        library.call("k_center_greedy", rows, 300, 17, 80, 5, 2, selected, radii, ctypes.byref(covering))
        coreset = ops.k_center_greedy(rows, 80, start=5, return_radius=True)
        assert np.array_equal(selected, coreset.indices.numpy())
        assert np.array_equal(radii.astype(np.float32), coreset.radii.numpy())
        assert covering.value == coreset.covering_radius


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CUDA emulator needs an x86-64 processor")
class TestCuda:
    """The search on a CUDA device, compiled as plain C++ and run on the CPU."""

    @pytest.fixture(scope="class")
    def emulated(self, prefix: Path) -> Library:
        build = prefix.parent / "build"
        libmmad.run("cmake", "--build", build, "--target", "mmad_emulated", "--parallel", os.cpu_count() or 1)
        return Library(build / "tests/libmmad_emulated.so")

    @pytest.mark.parametrize("precision", ["half", "int8"])
    def test_says_what_the_cpu_says(self, emulated: Library, tmp_path: Path, precision: str) -> None:
        assert emulated.cuda_device_count() == 1
        bank, path = calibrated(tmp_path, standardize=True, bank_precision=precision)
        own = emulated.open(path, device=0)
        before = own.get("nbytes")
        own.call("prepare", 1)
        assert own.get("nbytes") > before
        patches = drawn(2, 50, 33, seed=2)
        patches[0, 7] = drawn(20, 36, 33)[5, 3]
        for _ in range(2):
            for said, found in zip(bank.score(patches), own.score(patches.numpy()), strict=True):
                assert np.array_equal(found, said.numpy())
        for k in (40, 257):  # two passes over the bank; more than the device finds
            for said, found in zip(bank.search(patches[1], k), own.search(patches[1].numpy(), k), strict=True):
                assert np.array_equal(found, said.numpy())

    def test_vectors_that_cannot_be_searched_name_the_file(self, emulated: Library, tmp_path: Path) -> None:
        vectors = drawn(5, 4)
        bank = MemoryBank(vectors)
        vectors[3, 1] = float("inf")
        file_format.write(tmp_path / "b", bank.metadata(), {"vectors": vectors, "source_rows": bank.source_rows})
        with pytest.raises(Refused, match=r"b: altered, bank: row 3 holds NaN or infinity"):
            emulated.open(tmp_path / "b", device=0).call("prepare", 1)

    def test_another_device_is_refused(self, emulated: Library, tmp_path: Path) -> None:
        with pytest.raises(Refused, match=r"^device: expected MMAD_CPU \(-1\) or one of the 1 CUDA devices"):
            emulated.open(calibrated(tmp_path)[1], device=1)


class TestVerdicts:
    @pytest.mark.parametrize("n", [1, 25, 60, 400])
    @pytest.mark.parametrize("rate", [0.0, 0.29, 0.01, 0.003, 0.0003])
    def test_are_pythons(self, library: Library, tmp_path: Path, n: int, rate: float) -> None:
        bank, path = calibrated(tmp_path, n)
        own = library.open(path)
        patches = drawn(30, 36, 33, seed=5) * torch.linspace(0.7, 1.5, 30)[:, None, None]
        said_scores, (patch, image, _) = bank.score(patches), own.score(patches.numpy())
        p_values, bad, bad_patches = np.empty(30), np.empty(30, np.uint8), np.empty((30, 36), np.uint8)
        limits = Threshold(), Threshold()
        try:
            said = bank.judge(said_scores, rate or None)
        except InputError as error:
            words = str(error).removeprefix("false_alarm_")
            with pytest.raises(Refused, match=f"^{re.escape(words)}$"):
                own.call("judge", None, 30, 36, image, patch, rate, p_values, bad, bad_patches)
            return
        own.call("judge", None, 30, 36, image, patch, rate, p_values, bad, bad_patches)
        own.call("threshold", rate, *map(ctypes.byref, limits))
        assert np.array_equal(p_values, said.p_values.numpy())
        assert np.array_equal(bad, said.bad.numpy())
        assert np.array_equal(bad_patches, said.bad_patches.numpy())
        for found, expected in zip(limits, (said.threshold, said.patch_threshold), strict=True):
            assert (found.score, found.rate, bool(found.extrapolated)) == tuple(expected)

    def test_of_another_rule_or_bank_are_refused(self, library: Library, tmp_path: Path) -> None:
        bank, path = calibrated(tmp_path)
        own = library.open(path)
        known = own.calibration()
        assert (known.origin, known.images, known.patches, known.outdated) == (b"held-out images", 60, 36, 0)
        assert (known.rule.reweight, known.rule.n_neighbors, known.rule.divisor) == (0, 3, 1.0)
        arguments = (1, 36, None, None, 0.0, None, None, None)
        own.call("judge", ctypes.byref(known.rule), *arguments)
        for rule in (rule_of("max"), rule_of("m3dm", 4), rule_of("m3dm", 3, 2.0)):
            with pytest.raises(Refused, match=r"^rule: expected that of the calibration"):
                own.call("judge", ctypes.byref(rule), *arguments)
        with pytest.raises(Refused, match=r"^patches_per_image: expected 36"):
            own.call("judge", None, 1, 35, *arguments[2:])
        with pytest.raises(Refused, match=r"^image_scores: expected a pointer"):
            own.call("judge", None, 1, 36, None, None, 0.0, np.empty(1), None, None)
        MemoryBank(bank.vectors).save(tmp_path / "plain")
        plain = library.open(tmp_path / "plain")
        assert not plain.get("is_calibrated")
        with pytest.raises(Refused, match=r"^bank: expected one that is calibrated"):
            plain.calibration()


class TestExplanation:
    def test_tells_file_image_and_place(self, library: Library, tmp_path: Path) -> None:
        folder = tmp_path / "dumps"
        folder.mkdir()
        np.save(folder / os.fsdecode(b"maps.\xe4.npy"), drawn(3, 6, 4, 5).numpy())  # a name that is no UTF-8
        np.save(folder / "rows.npy", drawn(30, 6).numpy())
        banks = [
            MemoryBank.build(folder / os.fsdecode(b"maps.\xe4.npy"), ratio=0.5, layout="bchw"),
            MemoryBank.build([folder / "rows.npy"], ratio=0.5, extractor="é \ud800"),
            MemoryBank.load(FORMATS / "0.1/plain.safetensors"),
        ]
        for bank in banks:
            bank.save(tmp_path / "b")
            own = library.open(tmp_path / "b")
            for row, said in enumerate(bank.provenance()):
                found = own.origin(row)
                assert os.fsdecode(found.file) == said.file
                assert os.fsdecode(own.image_name(row)) == said.name
                numbers = (said.row, said.image, said.patch, *(said.place or (None, None)))
                assert [-1 if one is None else one for one in numbers] == [
                    found.row, found.image, found.patch, found.grid_row, found.grid_column,
                ]  # fmt: skip

    def test_facts_and_vectors(self, library: Library, tmp_path: Path) -> None:
        bank, path = calibrated(tmp_path, standardize=True, bank_precision="int8", extractor="net ä")
        own = library.open(path)
        assert (own.get("size"), own.get("dim"), own.get("radius")) == (len(bank), bank.dim, bank.radius)
        assert (own.get("index"), own.get("extractor").decode()) == (b"exact", "net ä")
        assert libmmad.PRECISION[own.get("precision")] == "int8"
        mean, std = ctypes.c_double(), ctypes.c_double()
        assert library.bank_standardization(own.handle, ctypes.byref(mean), ctypes.byref(std))
        assert bank.standardization == (mean.value, std.value)
        rows, vectors = np.array([5, 0, 5]), np.empty((3, 33), np.float32)
        own.call("vectors", rows, 3, vectors)
        assert np.array_equal(vectors, bank.vectors[rows].numpy())
        before = own.get("nbytes")
        own.call("prepare", 1)
        bank.search(torch.ones(1, 33))
        assert own.get("nbytes") - before == bank.search_index.nbytes


def said_by_python(path: Path) -> tuple[str, str]:
    try:
        MemoryBank.load(path)
    except FormatError as error:
        words = str(error).removeprefix(f"{path}: ")
        return words.replace(",", " ").split()[0], str(error)
    except InputError as error:
        return "io", str(error)
    return "ok", ""


def said_by_c(library: Library, path: Path) -> tuple[str, str]:
    try:
        library.open(path)
    except Refused as error:
        return error.status, str(error)
    return "ok", ""


class TestFiles:
    @pytest.mark.parametrize("path", sorted(FORMATS.glob("*/*.safetensors")), ids=lambda path: str(path)[-30:])
    def test_of_every_version_are_read(self, library: Library, path: Path) -> None:
        bank = MemoryBank.load(path)
        queries = drawn(10, bank.dim).numpy()
        assert np.array_equal(library.open(path).search(queries, 2)[0], bank.search(queries, 2)[0].numpy())

    def test_damaged_ones_are_refused_as_in_python(self, library: Library, tmp_path: Path) -> None:
        """Thousands of damages, checksums made right in half of them: the same word, mostly the same line."""
        _, own = calibrated(tmp_path, standardize=True, projection_dim=5)
        seeds = [own.read_bytes(), *(path.read_bytes() for path in sorted(FORMATS.glob("*/*.safetensors")))]
        ways = (mutators.any_bytes, mutators.safetensors_table, mutators.safetensors_values, mutators.bank_header,
                mutators.bank_header, mutators.bank_tensors)  # fmt: skip
        counts: Counter[str] = Counter()
        same, path = 0, tmp_path / "b"
        for number in range(FUZZED):
            rng = random.Random(number)
            path.unlink(missing_ok=True)  # some file systems write a file to the disk that is cut and written anew
            path.write_bytes(rng.choice(ways)(rng, rng.choice(seeds)))
            python, c = said_by_python(path), said_by_c(library, path)
            assert python[0] == c[0], (number, python, c)
            assert "\n" not in c[1]
            assert len(c[1]) < 1000
            counts[c[0]] += 1
            same += python[1] == c[1]
        assert set(counts) >= {"ok", "altered", "foreign", "truncated"}
        assert same > FUZZED / 2

    def test_cut_anywhere_is_truncated(self, library: Library, tmp_path: Path) -> None:
        _, path = calibrated(tmp_path)
        content = path.read_bytes()
        for size in (*range(0, 40), *np.linspace(40, len(content) - 1, 60).astype(int)):
            path.write_bytes(content[:size])
            assert said_by_python(path)[0] == said_by_c(library, path)[0], size
        assert said_by_c(library, path)[0] == "truncated"

    def test_header_numbers_are_written_as_python_writes_them(self, library: Library, tmp_path: Path) -> None:
        """The checksum is over Python's own spelling of every float and text."""
        bank = MemoryBank(drawn(3, 4))
        rng = np.random.default_rng(0)
        floats = [
            *rng.integers(0, 2**64, 3000, dtype=np.uint64).view(np.float64).tolist(),
            *(10.0**power for power in range(-30, 30)),
            5e-324,
            2.0**-44,
            1e22,
            1e23,
            123456789012345680.0,
            -0.0,
        ]
        header = {
            **bank.metadata(), "more": [one for one in floats if np.isfinite(one)], "huge": [10**40, -(2**63), 2**63],
            "texts": ["é\x7f\x00\u2028😀\ud800\"\\/\b\f\n\r\t", *map(chr, range(0, 0x3000, 7))],
            "": {"z": 1, "a": None},
        }  # fmt: skip
        file_format.write(tmp_path / "b", header, {"vectors": bank.vectors, "source_rows": bank.source_rows})
        assert said_by_python(tmp_path / "b") == said_by_c(library, tmp_path / "b") == ("ok", "")

    def test_missing_and_strange_ones(self, library: Library, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere", tmp_path):
            assert said_by_python(path) == said_by_c(library, path)
        os.mkfifo(tmp_path / "pipe")
        assert said_by_c(library, tmp_path / "pipe")[0] == "io"  # and nobody waits for a writer
        (tmp_path / "a.npz").write_bytes(b"PK\x03\x04" + bytes(40))
        assert said_by_python(tmp_path / "a.npz") == said_by_c(library, tmp_path / "a.npz")

    def test_newer(self, library: Library, tmp_path: Path) -> None:
        bank = MemoryBank(drawn(3, 4))
        header = {**bank.metadata(), "version": 2}
        file_format.write(tmp_path / "b", header, {"vectors": bank.vectors, "source_rows": bank.source_rows})
        assert said_by_c(library, tmp_path / "b")[0] == said_by_python(tmp_path / "b")[0] == "newer"

    def test_unverified_looks_at_the_header_alone(self, library: Library, tmp_path: Path) -> None:
        _, path = calibrated(tmp_path)
        content = bytearray(path.read_bytes())
        content[-1000] ^= 4
        path.write_bytes(content)
        assert said_by_c(library, path)[0] == "altered"
        library.open(path, flags=libmmad.UNVERIFIED)
        path.write_bytes(content.replace(b"euclidean", b"manhattan"))
        with pytest.raises(Refused, match="header does not match"):
            library.open(path, flags=libmmad.UNVERIFIED)

    def test_vectors_that_cannot_be_searched_name_the_file(self, library: Library, tmp_path: Path) -> None:
        vectors = drawn(5, 4)
        bank = MemoryBank(vectors)
        vectors[3, 1] = float("nan")
        file_format.write(tmp_path / "b", bank.metadata(), {"vectors": vectors, "source_rows": bank.source_rows})
        own = library.open(tmp_path / "b")
        with pytest.raises(FormatError) as said:
            MemoryBank.load(tmp_path / "b").search(drawn(1, 4))
        with pytest.raises(Refused) as refused:
            own.search(drawn(1, 4).numpy(), 1)
        assert (refused.value.status, str(refused.value)) == ("altered", str(said.value))

    def test_mapped_files_may_be_replaced_but_not_changed(self, library: Library, tmp_path: Path) -> None:
        bank, path = calibrated(tmp_path)
        queries = drawn(4, 33).numpy()
        mapped, read = (library.open(path, flags=flags) for flags in (libmmad.MAPPED, libmmad.IN_MEMORY))
        assert read.get("nbytes") - mapped.get("nbytes") == bank.vectors.nbytes
        said = bank.search(queries)[0].numpy()
        MemoryBank(drawn(7, 33)).save(path)  # by renaming
        assert np.array_equal(mapped.search(queries, 1)[0], said)
        again = library.open(path, flags=libmmad.MAPPED)
        os.utime(path, (1, 1))
        with pytest.raises(Refused, match="was changed in place"):
            again.search(queries, 1)
        path.unlink()
        assert again.search(queries, 1)[0].shape == (4, 1)


@pytest.fixture(scope="module")
def own(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return library.open(calibrated(tmp_path_factory.mktemp("own"))[1])


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "arguments", "words"),
        [
            ("search", (None, 1, 33, 1, 1, None, None), "queries: expected a pointer"),
            ("search", ("rows", 1, 32, 1, 1, None, None), "queries: expected rows of 33"),
            ("search", ("rows", 0, 33, 1, 1, None, None), "queries: expected at least one row"),
            ("search", ("rows", -1, 33, 1, 1, None, None), "queries: expected at least one row"),
            ("search", ("rows", 2**62, 33, 1, 1, None, None), "queries: .* cannot be addressed"),
            ("search", ("rows", 1, 33, 0, 1, None, None), "k: expected 1 to 288"),
            ("search", ("rows", 1, 33, 289, 1, None, None), "k: expected 1 to 288"),
            ("search", ("rows", 1, 33, 1, -1, None, None), "threads: expected 0"),
            ("search", ("nan", 1, 33, 1, 1, None, None), "queries: row 0 holds NaN"),
            ("score", ("rows", 0, 1, 33, None, 1, None, None, None), "patches: expected at least one image"),
            ("score", ("rows", 2**40, 2**40, 33, None, 1, None, None, None), "patches: more patches than"),
            ("score", ("nan", 1, 1, 33, None, 1, None, None, None), "patches: image 0, patch 0 holds NaN"),
            ("score", ("rows", 1, 1, 33, Rule(4, 0, 1.0), 1, None, None, None), "rule: expected a reweight"),
            ("score", ("rows", 1, 1, 33, Rule(0, 1, 1.0), 1, None, None, None), "rule: expected n_neighbors"),
            ("score", ("rows", 1, 1, 33, Rule(0, 3, -1.0), 1, None, None, None), "rule: expected a divisor"),
            ("score", ("rows", 1, 1, 33, Rule(0, 3, float("nan")), 1, None, None, None), "rule: expected a divisor"),
            ("origin", (288, ctypes.byref(libmmad.Origin())), "row: expected 0 to 287"),
            ("origin", (0, None), "origin: expected a pointer"),
            ("image_name", (-1, None, 0, None), "row: expected 0 to 287"),
            ("image_name", (0, None, 5, None), "buffer: expected a pointer"),
            ("vectors", (np.array([288]), 1, np.empty(33, np.float32)), "rows: expected 0 to 287"),
            (
                "judge",
                (None, 1, 36, "nan", "rows", 0.1, None, np.empty(1, np.uint8), None),
                "image_scores: expected numb",
            ),
            (
                "judge",
                (None, 1, 36, "rows", "nan", 0.1, None, None, np.empty(36, np.uint8)),
                "patch_scores: expected num",
            ),
            ("threshold", (1.0, None, None), "rate: expected a number above 0 and below 1"),
            ("threshold", (float("nan"), None, None), "rate: expected a number above 0"),
        ],
    )
    def test_wrong_ones_get_a_line(self, own: Bank, name: str, arguments: tuple[object, ...], words: str) -> None:
        rows = {"rows": np.ones((1, 36), np.float32), "nan": np.full((1, 36), np.nan, np.float32)}
        given = [rows.get(one, one) if isinstance(one, str) else one for one in arguments]
        given = [ctypes.byref(one) if isinstance(one, Rule) else one for one in given]
        with pytest.raises(Refused, match=f"^{words}") as refused:
            own.call(name, *given)
        assert refused.value.status == "argument"

    def test_of_open(self, library: Library, tmp_path: Path) -> None:
        _, path = calibrated(tmp_path)
        for arguments, words in (
            ({"precision": 5}, "prec"),
            ({"flags": 8}, "flags"),
            ({"device": -2}, "device"),
            ({"threads": -1}, "threads"),
        ):
            with pytest.raises(Refused, match=f"^{words}"):
                library.open(path, **arguments)
        with pytest.raises(Refused, match=r"^bank: expected a pointer"):
            library.call("bank_open", os.fsencode(path), 0, -1, 0, 1, None)
        assert library.cuda_device_count() == 0
        with pytest.raises(Refused, match=r"^device: expected MMAD_CPU \(-1\) or one of the 0 CUDA devices") as refused:
            library.open(path, device=0)
        assert refused.value.status == "device"
        library.bank_close(None)
        assert library.bank_size(None) == 0

    def test_a_name_is_cut_to_the_buffer(self, own: Bank) -> None:
        whole = own.image_name(0)
        short = ctypes.create_string_buffer(b"x" * 10, 10)
        own.call("image_name", 0, short, 4, None)
        assert short.raw[:5] == whole[:3] + b"\0x"

    @pytest.mark.parametrize("name", [b"\xff\xc3.bank", b"a" * 4000 + "é".encode() * 100, "日本.bank".encode()])
    def test_lines_are_utf8_whatever_a_file_is_called(self, library: Library, name: bytes) -> None:
        assert library.bank_open(name, 0, -1, 0, 1, ctypes.byref(ctypes.c_void_p())) != 0
        line = library.last_error().decode()
        shown = name.decode(errors="backslashreplace")
        assert line.startswith(f"{shown}: cannot be read") if len(name) < 99 else shown.startswith(line[:4095])
        assert len(line.encode()) <= 4095

    def test_errors_are_each_threads_own(self, library: Library, own: Bank) -> None:
        with pytest.raises(Refused):
            own.origin(-1)
        elsewhere: list[bytes] = []
        other = threading.Thread(target=lambda: elsewhere.append(library.last_error()))
        other.start()
        other.join()
        assert elsewhere == [b""]
        assert library.last_error().startswith(b"row: ")


def test_a_hostile_header_takes_no_memory(library: Library, tmp_path: Path) -> None:
    """A list of millions of empty objects: refused, in a process of little memory."""
    text = json.dumps({"format": "mmad-bank", "version": 1, "x": []}).replace("[]", "[" + "{}," * (5 << 20) + "{}]")
    table = json.dumps({"__metadata__": {"mmad_bank": text}}).encode()
    (tmp_path / "b").write_bytes(len(table).to_bytes(8, "little") + table)
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "import libmmad; from pathlib import Path\n"
        "library = libmmad.Library(Path(sys.argv[2]))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try: library.open(sys.argv[3])\n"
        "except libmmad.Refused as error: print(error.status)\n"
    )
    command = [sys.executable, "-c", code, str(HERE), library.functions._name, str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("altered", "memory")


@pytest.fixture(scope="module")
def programs(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the programs of examples/ in a folder of their own, with nothing but the installed library."""
    folder = tmp_path_factory.mktemp("examples")
    clean = {"PATH": f"{Path(shutil.which('cmake') or '').parent}:{os.defpath}", "HOME": str(folder), "LC_ALL": "C"}
    for name in ("c", "cpp"):
        shutil.copytree(EXAMPLES / name, folder / name)
        made = folder / name / "build"
        libmmad.run("cmake", "-S", folder / name, "-B", made, f"-DCMAKE_PREFIX_PATH={prefix}", env=clean)
        libmmad.run("cmake", "--build", made, env=clean)
    return folder


class TestExamples:
    """They print what Python prints."""

    def test_scores_are_pythons(self, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        np.save("train.npy", drawn(10, 49, 20).numpy())
        patches = drawn(6, 49, 20, seed=1).numpy()
        np.save("new.npy", patches)
        bank = MemoryBank.build("train.npy", ratio=0.2, standardize=True)
        bank.save("line.bank")
        scores, lines = bank.score(patches), []
        for i in range(len(patches)):
            worst = int(scores.patch[i].argmax())
            (origin,) = bank.provenance([int(scores.nearest[i, worst])])
            lines.append(
                f"image {i}: score {scores.image[i]:.9g}, patch {worst} at {scores.patch[i, worst]:.9g}"
                f" from patch {origin.patch} of {origin.name} ({origin.file})\n"
            )
        assert libmmad.run(programs / "c/build/score", "line.bank", "new.npy") == "".join(lines)

    def test_verdicts_are_pythons(self, programs: Path, tmp_path: Path) -> None:
        bank, path = calibrated(tmp_path, 99)
        patches = drawn(8, 36, 33, seed=6).numpy() * np.linspace(0.8, 1.6, 8, dtype=np.float32)[:, None, None]
        np.save(tmp_path / "new.npy", patches)
        for rate in ((), (0.05,)):
            scores = bank.score(patches)
            said = bank.judge(scores, *rate)
            lines = [
                f"limit {said.threshold.score:.17g} at a false-alarm rate of {said.threshold.rate:g},"
                " by 99 held-out images\n"
            ]
            lines += [
                f"image {i}: score {scores.image[i]:.9g}, p-value {said.p_values[i]:.17g},"
                f" {'bad' if said.bad[i] else 'good'}, {said.bad_patches[i].sum()} bad patches\n"
                for i in range(8)
            ]
            assert libmmad.run(programs / "cpp/build/judge", path, tmp_path / "new.npy", *rate) == "".join(lines)
            assert {"bad", "good"} == {line.split(", ")[2] for line in lines[1:]}

    @pytest.mark.parametrize("name", ["c/build/score", "cpp/build/judge"])
    def test_what_cannot_be_used_gets_a_line(self, programs: Path, tmp_path: Path, name: str) -> None:
        _, path = calibrated(tmp_path)
        np.save(tmp_path / "wide.npy", np.zeros((1, 36, 34), np.float32))
        np.save(tmp_path / "double.npy", np.zeros((1, 36, 33)))
        for bank, dump, words in (
            (tmp_path / "none", tmp_path / "wide.npy", "none: cannot be read (No such file or directory)"),
            (path, tmp_path / "wide.npy", "patches: expected rows of 33 values as in the bank, found 34"),
            (path, tmp_path / "double.npy", "double.npy: expected a .npy file of float32 (images, patches, D)"),
            (path, path, "own.bank: expected a .npy file of float32 (images, patches, D)"),
        ):
            done = subprocess.run([programs / name, bank, dump], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout if name[1] == "/" else "") == (2, "")
            assert done.stderr.startswith("error: ")
            assert done.stderr.endswith(f"{words}\n")


@pytest.fixture(scope="module")
def inspector(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build examples/onnx; lay a model, exports of it at two rates, and pictures beside it. Return the folder."""
    openvino = pytest.importorskip("openvino")
    for package in ("onnxscript", "onnxruntime", "timm", "PIL"):
        pytest.importorskip(package)
    sys.path.append(str(HERE.parent))
    from data_trees import add_picture
    from helpers import good, small_settings
    from PIL import Image

    from mmad_bank.exporting import export
    from mmad_bank.methods import load

    folder = tmp_path_factory.mktemp("inspector")
    for number in range(24):
        add_picture(folder / "good" / f"{number}.png", size=(96, 128), seed=number)
    settings = (*small_settings(64, 8, 0.5, calibration="folds"), "--set", "reweight=top")
    good("fit", "patchcore", folder / "good", "--out", folder / "model", *settings)
    for name, rate in (("promised", None), ("extrapolated", 0.01)):
        export(load(folder / "model").with_arguments(false_alarm_rate=rate), folder / name)
    for name in ("plain", "spot"):
        add_picture(folder / f"{name}.png", size=(96, 128), seed=40, spot=name == "spot")
        Image.open(folder / f"{name}.png").convert("RGB").save(folder / f"{name}.ppm")
    found = f"{prefix};{Path(openvino.__file__).parent / 'cmake'}"
    libmmad.run("cmake", "-S", EXAMPLES / "onnx", "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={found}")
    libmmad.run("cmake", "--build", folder / "build")
    return folder


def inspect(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """Run the program in its folder; return exit code, standard output and standard error."""
    command = [folder / "build/inspect", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def changed(export: Path, into: Path, place: str, value: object) -> Path:
    """Copy an export, another value at a place of its export.json."""
    shutil.copytree(export, into)
    table = said = json.loads((into / "export.json").read_text())
    *names, last = place.split(".")
    for name in names:
        table = table[name]
    assert last in table
    table[last] = value
    (into / "export.json").write_text(json.dumps(said))
    return into


class TestPictures:
    """examples/onnx: from the pixels to the verdict by the exported extractor, OpenVINO and libmmad."""

    @pytest.mark.parametrize(
        ("export", "rate", "arguments"),
        [
            ("promised", None, ()),
            ("extrapolated", 0.01, ()),
            ("extrapolated", 0.05, ("5%",)),
            ("promised", 0.1, (0.1,)),
        ],
    )
    def test_a_picture_is_judged_as_by_python(
        self, inspector: Path, export: str, rate: float | None, arguments: tuple[object, ...]
    ) -> None:
        from mmad_bank.methods import load

        model = load(inspector / "model").with_arguments(false_alarm_rate=rate)
        for name, verdict in (("plain", "good"), ("spot", "bad")):
            expected = model.predict(inspector / f"{name}.png")
            assert expected.verdict == verdict
            code, said, _ = inspect(inspector, export, f"{name}.ppm", *arguments)
            score, p_value, *words = re.fullmatch(
                r"score (\S+), p-value (\S+): (\w+) at a false-alarm rate of (\S+?)( \(extrapolated\))?\n", said
            ).groups()
            assert float(score) == pytest.approx(expected.score, rel=2e-3)
            assert float(p_value) == pytest.approx(expected.p_value, rel=1e-5)
            assert words == [verdict, f"{expected.threshold.rate:g}", " (extrapolated)" if rate == 0.01 else None]
            assert code == (4 if verdict == "bad" else 0)

    def test_the_limit_of_the_export_counts(self, inspector: Path, tmp_path: Path) -> None:
        high = changed(inspector / "extrapolated", tmp_path / "high", "decision.verdict.bad_above", 1e6)
        code, said, _ = inspect(inspector, high, "spot.ppm")
        assert (code, "p-value 0.04: good at a false-alarm rate of 0.01 (extrapolated)" in said) == (0, True)

    @pytest.mark.parametrize("rate", ["2", "1", "0", "-0.1", "100%", "five", "", "%", "nan", "0x1p-4", "1e-400"])
    def test_what_is_no_rate_gets_a_line(self, inspector: Path, rate: str) -> None:
        words = f"error: RATE: expected a share above 0 and below 1, such as 0.01 or 1%, found '{rate}'\n"
        assert inspect(inspector, "promised", "spot.ppm", rate) == (2, "", words)

    @pytest.mark.parametrize(("rate", "found"), [("1%", "0.01"), ("1e-6", "1e-06"), ("0.0399", "0.0399")])
    def test_a_rate_that_cannot_be_promised_gets_a_line(self, inspector: Path, rate: str, found: str) -> None:
        words = "at least 1/(n + 1) = 0.04 with 24 held-out images, or none for the model's own rate"
        said = (2, "", f"error: RATE: expected {words}, found {found}\n")
        assert inspect(inspector, "extrapolated", "spot.ppm", rate) == said
        assert inspect(inspector, "extrapolated", "spot.ppm", "0.04")[0] == 4

    @pytest.mark.parametrize(
        ("place", "value", "words"),
        [
            ("method", "m3dm", "a PatchCore, which has one bank, found m3dm"),
            ("networks.rgb.prepares", False, "a model that keeps the background, found one whose network takes prepared"
             " squares, no pictures"),
            ("roi", {"size": [96, 128]}, "a model without a region of interest, found roi: its bank knows no patch"
             " outside"),
            ("arguments.views", "{part}_{view}", "a model that judges each picture by itself, found views: it judges"
             " the pictures of a part"),
            ("calibration", None, "a calibrated model, found one that is not: no verdict follows from its scores"),
            ("version", 2, "what mmad-bank export writes, version 1, found another file"),
            ("banks.rgb.divisor", "1", "a number as divisor, found text"),
            ("banks", {}, "banks.rgb, found none"),
            ("banks.rgb.reweight", "new", "m3dm, patchcore, max or top as reweight, found another word"),
            ("banks.rgb.n_neighbors", 0.5, "a whole number from 1 to 1000000 as n_neighbors, found 0.5"),
        ],
    )  # fmt: skip
    def test_an_export_that_is_not_for_it_gets_a_line(
        self, inspector: Path, tmp_path: Path, place: str, value: object, words: str
    ) -> None:
        another = changed(inspector / "promised", tmp_path / "another", place, value)
        assert inspect(inspector, another, "spot.ppm") == (2, "", f"error: export.json: expected {words}\n")

    def test_a_file_that_cannot_be_used_gets_a_line(self, inspector: Path, tmp_path: Path) -> None:
        words = "spot.png: expected a binary PPM (P6) of 8 bits"
        assert inspect(inspector, "promised", "spot.png") == (2, "", f"error: {words}\n")
        assert inspect(inspector, "good", "spot.ppm") == (2, "", "error: good/export.json: cannot be read\n")
        assert inspect(inspector, "promised")[:2] == (2, "")
        damaged = tmp_path / "damaged"
        shutil.copytree(inspector / "promised", damaged)
        (damaged / "rgb.onnx").write_bytes((damaged / "rgb.onnx").read_bytes()[:100_000])
        words = f"{damaged}/rgb.onnx: OpenVINO cannot run it; is the file whole?"
        assert inspect(inspector, damaged, "spot.ppm") == (2, "", f"error: {words}\n")
        whole = (damaged / "export.json").read_text()
        for text in ("", whole[:-5], f"{whole}]", whole.replace(",", "", 1), "[" * 100_000, '{"a": "\\x"}', "[1,]"):
            (damaged / "export.json").write_text(text)
            code, said, line = inspect(inspector, damaged, "spot.ppm")
            assert (code, said) == (2, "")
            assert re.fullmatch(r"error: export.json: expected JSON, found something else at byte \d+\n", line)
