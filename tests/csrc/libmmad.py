"""libmmad through ctypes: a plain C caller, as C#'s P/Invoke is. Arrays go in and out by address."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CSRC = Path(__file__).parents[2] / "csrc"
NEEDS_CMAKE = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("g++") is None, reason="needs cmake and g++"
)
STATUS = ("ok", "argument", "io", "foreign", "truncated", "altered", "newer", "memory", "device", "internal")
REWEIGHT = ("m3dm", "patchcore", "max", "top")
PRECISION = ("", "auto", "float32", "half", "int8")
UNVERIFIED, IN_MEMORY, MAPPED = 1, 2, 4


def build(folder: Path, *options: str, install: bool = True) -> Path:
    """Build libmmad in a folder and return the prefix that it is installed to, or the build folder."""
    made, prefix = folder / "build", folder / "prefix"
    run("cmake", "-S", CSRC, "-B", made, *options)
    run("cmake", "--build", made, "--parallel", os.cpu_count() or 1)
    if not install:
        return made
    run("cmake", "--install", made, "--prefix", prefix)
    return prefix


def run(*command: object, **arguments: Any) -> str:
    """Run a program; what it says is shown where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **arguments)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


class Rule(Structure):
    _fields_ = (("reweight", c_int32), ("n_neighbors", c_int32), ("divisor", c_double))


class Origin(Structure):
    _fields_ = (
        ("file", c_char_p), ("row", c_int64), ("image", c_int64), ("patch", c_int64), ("grid_row", c_int64),
        ("grid_column", c_int64),
    )  # fmt: skip


class Calibration(Structure):
    _fields_ = (
        ("origin", c_char_p), ("images", c_int64), ("patches", c_int64), ("rule", Rule), ("outdated", c_int32),
        ("smallest_rate", c_double),
    )  # fmt: skip


class Threshold(Structure):
    _fields_ = (("score", c_double), ("rate", c_double), ("extrapolated", c_int32))


_FUNCTIONS: dict[str, tuple[Any, str]] = {
    # result, arguments: p address, s text, i int32, l int64, z size_t, d double
    "mmad_version": (c_char_p, ""),
    "mmad_last_error": (c_char_p, ""),
    "mmad_instruction_set": (c_char_p, ""),
    "mmad_cuda_device_count": (c_int32, ""),
    "mmad_bank_open": (c_int32, "siiiip"),
    "mmad_bank_close": (None, "p"),
    "mmad_bank_prepare": (c_int32, "pi"),
    "mmad_bank_size": (c_int64, "p"),
    "mmad_bank_dim": (c_int64, "p"),
    "mmad_bank_nbytes": (c_int64, "p"),
    "mmad_bank_precision": (c_int32, "p"),
    "mmad_bank_index": (c_char_p, "p"),
    "mmad_bank_extractor": (c_char_p, "p"),
    "mmad_bank_radius": (c_double, "p"),
    "mmad_bank_standardization": (c_int32, "ppp"),
    "mmad_bank_search": (c_int32, "pplllipp"),
    "mmad_bank_score": (c_int32, "pplllpippp"),
    "mmad_bank_vectors": (c_int32, "pplp"),
    "mmad_bank_origin": (c_int32, "plp"),
    "mmad_bank_image_name": (c_int32, "plpzp"),
    "mmad_bank_is_calibrated": (c_int32, "p"),
    "mmad_bank_calibration": (c_int32, "pp"),
    "mmad_bank_threshold": (c_int32, "pdpp"),
    "mmad_bank_judge": (c_int32, "ppllppdppp"),
    "mmad_knn": (c_int32, "plpllliipp"),
    "mmad_k_center_greedy": (c_int32, "plllippp"),
}
_KINDS = {"p": c_void_p, "s": c_char_p, "i": c_int32, "l": c_int64, "z": c_size_t, "d": c_double}


class Refused(Exception):
    """A call that failed: its status, by name, and the line about it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = STATUS[status]


class Library:
    """The functions of a libmmad.so, with errors as exceptions."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        for name, (result, kinds) in _FUNCTIONS.items():
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, [_KINDS[kind] for kind in kinds]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.functions, f"mmad_{name}")

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.functions, f"mmad_{name}")(*map(_address, arguments))
        if status != 0:
            raise Refused(status, self.last_error().decode(errors="surrogateescape"))

    def open(
        self, path: os.PathLike[str] | str, precision: int = 0, device: int = -1, flags: int = 0, threads: int = 1
    ) -> Bank:
        handle = c_void_p()
        self.call("bank_open", os.fsencode(path), precision, device, flags, threads, byref(handle))
        return Bank(self, handle)


class Bank:
    """A bank that was opened; closed with the object."""

    def __init__(self, library: Library, handle: c_void_p) -> None:
        self.library, self.handle = library, handle

    def __del__(self) -> None:
        self.library.bank_close(self.handle)

    def call(self, name: str, *arguments: Any) -> None:
        self.library.call(f"bank_{name}", self.handle, *arguments)

    def get(self, name: str) -> Any:
        return getattr(self.library, f"bank_{name}")(self.handle)

    def search(self, queries: np.ndarray, k: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        distances, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        self.call("search", queries, len(queries), queries.shape[1], k, threads, distances, rows)
        return distances, rows

    def score(
        self, patches: np.ndarray, rule: Rule | None = None, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images, count, dim = patches.shape
        patch, image = np.empty((images, count), np.float32), np.empty(images, np.float32)
        nearest = np.empty((images, count), np.int64)
        self.call(
            "score", patches, images, count, dim, None if rule is None else byref(rule), threads, patch, image, nearest
        )
        return patch, image, nearest

    def origin(self, row: int) -> Origin:
        found = Origin()
        self.call("origin", row, byref(found))
        return found

    def image_name(self, row: int) -> bytes:
        length = c_size_t()
        self.call("image_name", row, None, 0, byref(length))
        text = ctypes.create_string_buffer(length.value + 1)
        self.call("image_name", row, text, len(text), None)
        return text.value

    def calibration(self) -> Calibration:
        found = Calibration()
        self.call("calibration", byref(found))
        return found


def rule_of(reweight: str, n_neighbors: int = 0, divisor: float = 1.0) -> Rule:
    return Rule(REWEIGHT.index(reweight), n_neighbors, divisor)


def _address(value: Any) -> Any:
    """Return what ctypes takes; arrays must be packed."""
    if not isinstance(value, np.ndarray):
        return value
    assert value.flags.c_contiguous
    return value.ctypes.data


__all__ = ["NEEDS_CMAKE", "POINTER", "Bank", "Library", "Refused", "Rule", "Threshold", "build", "rule_of", "run"]
