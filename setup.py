"""Build of the native core: plain C++17 and, where nvcc is found, CUDA. No PyTorch is needed to build.

Environment variables:
    MMAD_BANK_CUDA        0 leaves the CUDA sources out, 1 makes a missing nvcc an error (default: if nvcc is found)
    MMAD_BANK_CUDA_ARCHS  semicolon-separated architectures (default: 80;90a, and PTX of the lowest for newer devices)
    MMAD_BANK_BUILD_JOBS  parallel compiler processes (default: the number of cores)
    CUDA_HOME             toolkit to use instead of the one that nvcc on PATH belongs to
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).parent.resolve()
DEFAULT_CUDA_ARCHS = "80;90a"
JOBS = int(os.environ.get("MMAD_BANK_BUILD_JOBS", os.cpu_count() or 1))


def find_nvcc() -> Path | None:
    choice = os.environ.get("MMAD_BANK_CUDA", "auto")
    if choice == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None and choice == "1":
        raise SystemExit("MMAD_BANK_CUDA=1, but no nvcc was found on PATH, in CUDA_HOME or in /usr/local/cuda")
    return Path(found).resolve() if found else None


def toolkit_of(nvcc: Path) -> Path:
    """Ask nvcc itself where its headers and libraries are: the executable may be a wrapper elsewhere on PATH."""
    dry = subprocess.run(
        [str(nvcc), "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    for line in dry.stderr.splitlines():
        name, _, value = line.removeprefix("#$ ").partition("=")
        if name.strip() == "TOP":
            return Path(value.strip()).resolve()
    return nvcc.parent.parent


def gencode_flags(archs: list[str]) -> list[str]:
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    lowest = min((arch for arch in archs if arch.isdigit()), key=int, default=None)
    if lowest is not None:
        flags.append(f"-gencode=arch=compute_{lowest},code=compute_{lowest}")
    return flags


class BuildCore(build_ext):
    """build_ext that hands the .cu files to nvcc and links their objects in."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        nvcc = find_nvcc()
        cuda_sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        if nvcc is not None and cuda_sources:
            archs = os.environ.get("MMAD_BANK_CUDA_ARCHS", DEFAULT_CUDA_ARCHS).split(";")
            with ThreadPoolExecutor(JOBS) as pool:
                objects = list(pool.map(lambda source: self.compile_cuda(nvcc, archs, source), cuda_sources))
            home = toolkit_of(nvcc)
            ext.extra_objects = objects
            ext.depends += objects  # a kernel that has changed alone has the core linked again
            ext.sources.append("csrc/bindings_cuda.cpp")
            ext.define_macros += [("MMAD_WITH_CUDA", "1"), ("MMAD_CUDA_ARCHS", f'"{";".join(archs)}"')]
            ext.include_dirs.append(str(home / "include"))
            ext.library_dirs += [
                str(p) for p in (home / "lib64", home / "targets" / "x86_64-linux" / "lib") if p.exists()
            ]
            ext.libraries += ["cudart_static", "rt", "dl", "pthread"]
        super().build_extension(ext)

    def compile_cuda(self, nvcc: Path, archs: list[str], source: Path) -> str:
        target = Path(self.build_temp).resolve() / "cuda" / f"{source.stem}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        headers = [*(ROOT / "csrc").rglob("*.cuh"), *(ROOT / "csrc").rglob("*.hpp")]
        newest = max(path.stat().st_mtime for path in [source, *headers, Path(__file__)])
        if not target.exists() or target.stat().st_mtime < newest:
            command = [str(nvcc), "-c", str(source), "-o", str(target), "-O3", "-std=c++17", "-lineinfo"]
            command += [
                "-Xcompiler",
                "-fPIC,-fvisibility=hidden",
                f"-I{ROOT / 'csrc' / 'include'}",
                f"-I{ROOT / 'csrc'}",
            ]
            command += ["-DMMAD_HAS_SM90A"] if "90a" in archs else []  # the wgmma product has code
            subprocess.run([*command, *gencode_flags(archs)], check=True)
        return str(target)


def core_extension() -> Pybind11Extension:
    bindings = [ROOT / "csrc" / f"{name}.cpp" for name in ("bindings", "bindings_points", "bindings_shards")]
    sources = [*bindings, *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    return Pybind11Extension(
        "mmad_bank._core",
        sources=[str(path.relative_to(ROOT)) for path in sources],
        include_dirs=["csrc/include", "csrc"],
        depends=[str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.hpp")],
        cxx_std=17,
        # The bounds in operand.hpp are proved for IEEE arithmetic: no fast-math here, ever.
        extra_compile_args=["-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"],
        extra_link_args=["-pthread"],
    )


ParallelCompile(default=JOBS).install()
setup(ext_modules=[core_extension()], cmdclass={"build_ext": BuildCore})
