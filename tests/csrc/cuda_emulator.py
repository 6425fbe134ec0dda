"""Build the CUDA kernels for the CPU emulator: one g++ call a source, linked to the extension ``_core_emulated``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
NAME = "_core_emulated"
HOST_ONLY = "device.cu"  # asks the CUDA runtime; cuda_emulated_module.cpp has its own
FLAGS = ["-O1", "-std=c++17", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DMMAD_CUDA_EMULATED"]
FLAGS += [f"-I{path}" for path in (HERE, CSRC, CSRC / "include")]


def find_compiler() -> str:
    """Return the C++ compiler, or raise FileNotFoundError."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or platform.machine() != "x86_64":
        raise FileNotFoundError("the CUDA emulator needs an x86-64 processor and g++ (or CXX)")
    return compiler


def run_checks(
    folder: Path, source: str = "cuda_checks.cpp", flags: tuple[str, ...] = (), kernels: tuple[str, ...] = ()
) -> str:
    """Compile and run a program of this folder, with some of csrc/cuda; what it prints is what failed."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / Path(source).stem
    sources = [str(HERE / source), *(str(CSRC / "cuda" / kernel) for kernel in kernels)]
    subprocess.run([find_compiler(), *FLAGS, *flags, "-x", "c++", *sources, "-o", str(program)], check=True)
    found = subprocess.run([str(program)], check=False, capture_output=True, text=True)
    return found.stdout + found.stderr


def build(folder: Path) -> Path:
    """Compile what has changed since the last time and return the extension's path."""
    import pybind11

    compiler = find_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, "-fPIC", "-fvisibility=hidden"]
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    sources = [path for path in sorted((CSRC / "cuda").glob("*.cu")) if path.name != HOST_ONLY]
    sources += [CSRC / "bindings_cuda.cpp", HERE / "cuda_emulated_module.cpp"]
    headers = [*CSRC.rglob("*.hpp"), *CSRC.rglob("*.cuh"), *HERE.glob("*.hpp"), Path(__file__)]
    newest_header = max(path.stat().st_mtime for path in headers)

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < max(newest_header, source.stat().st_mtime):
            command = [compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
            subprocess.run(command, check=True, capture_output=True, text=True)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    extension = folder / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not extension.exists() or extension.stat().st_mtime < max(path.stat().st_mtime for path in objects):
        subprocess.run([compiler, "-shared", *map(str, objects), "-o", str(extension)], check=True)
    return extension


def load(folder: Path) -> ModuleType:
    """Build, import and return the module's ``cuda`` part."""
    path = build(folder)
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cuda: ModuleType = module.cuda
    return cuda
