"""Run native functions of this process on an emulated Sapphire Rapids processor (bochscpu, the CPU of Bochs).

The emulated processor sees this process's own memory at its own addresses, so a function of a loaded library runs as
it is, with its relocations, globals, thread-local variables and heap; its system calls go to the real kernel. Bochs
executes AVX-512 with VNNI and BF16. It does not execute AMX: those instructions are replaced by traps into `Tiles`, a
transcription of the operations in Intel's Software Developer's Manual.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

PAGE = 4096
PRESENT_WRITABLE_USER = 7
TRAP = bytes((0x0F, 0x18, 0x00))  # prefetchnta (%rax): harmless, and the emulator calls back for it
STARTS_A_THREAD = (56, 57, 58, 435)  # clone, fork, vfork, clone3
TILE_INSTRUCTION = re.compile(
    r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t"
    r"(ldtilecfg|tilerelease|tilezero|tileloadd|tilestored|tdp\w+|sttilecfg|tileloaddt1)\s*(.*)$"
)

# bochscpu starts as a Cannon Lake; this makes it a Sapphire Rapids, and supplies two names of newer C libraries.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
unsigned long long __isoc23_strtoull(const char* s, char** e, int b) { return strtoull(s, e, b); }
int __isoc23_sscanf(const char* s, const char* f, ...) {
  va_list v; va_start(v, f); int n = vsscanf(s, f, v); va_end(v); return n;
}
void* _Z23create_corei3_cnl_cpuidP8BX_CPU_C(void* cpu) {
  void* bochs = dlopen(getenv("MMAD_BOCHSCPU"), RTLD_NOLOAD | RTLD_LAZY);
  void* (*create)(void*) = dlsym(bochs, "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C");
  return create(cpu);
}
"""


def load_bochscpu(folder: Path) -> Any:
    spec = importlib.util.find_spec("bochscpu")
    assert spec is not None
    assert spec.origin is not None
    os.environ["MMAD_BOCHSCPU"] = str(next(Path(spec.origin).parent.glob("_bochscpu*.so")))
    (folder / "shim.c").write_text(SHIM)
    shim = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", shim, folder / "shim.c", "-ldl"], check=True)
    ctypes.CDLL(str(shim), ctypes.RTLD_GLOBAL)
    import bochscpu
    import bochscpu.cpu
    import bochscpu.memory

    return bochscpu


class Tiles:
    """The AMX state and its instructions."""

    def __init__(self) -> None:
        self.rows = [0] * 8
        self.row_bytes = [0] * 8
        self.data = np.zeros((8, 16, 64), np.uint8)
        self.configured = False
        self.executed: dict[str, int] = {}

    def execute(self, name: str, operands: list[Any]) -> None:
        self.executed[name] = self.executed.get(name, 0) + 1
        if name != "ldtilecfg":
            assert self.configured, f"{name} before ldtilecfg raises #UD"
        getattr(self, name)(*operands)

    def ldtilecfg(self, address: int) -> None:
        config = ctypes.string_at(address, 64)
        assert config[:2] == b"\x01\x00", "palette 1, start row 0"
        assert not any(config[2:16] + config[32:48] + config[56:64]), "#GP: reserved bytes, and tiles beyond the eighth"
        self.row_bytes = list(np.frombuffer(config[16:32], np.uint16).astype(int))
        self.rows = list(config[48:56])
        for rows, row_bytes in zip(self.rows, self.row_bytes, strict=True):
            assert max(4 * rows, row_bytes) <= 64, "#GP: too large a tile"
            assert (rows == 0) == (row_bytes == 0), "#GP: half of a shape"
        self.data[:] = 0
        self.configured = True

    def tilerelease(self) -> None:
        self.configured = False
        self.data[:] = 0

    def tilezero(self, tile: int) -> None:
        assert self.rows[tile] > 0, "#UD"
        self.data[tile] = 0

    def tileloadd(self, memory: tuple[int, int], tile: int) -> None:
        address, stride = memory
        assert self.rows[tile] > 0, "#UD"
        self.data[tile] = 0
        width = self.row_bytes[tile]
        for row in range(self.rows[tile]):
            line = ctypes.string_at(address + row * stride, width)
            self.data[tile, row, :width] = np.frombuffer(line, np.uint8)

    def tilestored(self, tile: int, memory: tuple[int, int]) -> None:
        address, stride = memory
        assert self.rows[tile] > 0, "#UD"
        for row in range(self.rows[tile]):
            ctypes.memmove(address + row * stride, self.data[tile, row].tobytes(), self.row_bytes[tile])

    def tdpbf16ps(self, right: int, left: int, to: int) -> None:
        """AT&T order: the last operand is the destination, the middle one its rows' factor."""
        assert len({right, left, to}) == 3, "#UD"
        assert self.row_bytes[left] // 4 == self.rows[right], "#UD: depth"
        assert (self.rows[to], self.row_bytes[to]) == (self.rows[left], self.row_bytes[right]), "#UD: shape"
        a, b = self._widen(left), self._widen(right)  # (rows, pairs, 2), (pairs, columns, 2)
        partial = np.zeros((16, 16, 2), np.float32)
        for k in range(self.rows[right]):
            partial = flushed(partial + flushed(a[:, k, None, :] * b[None, k, :, :]))
        sums = self.data[to].view(np.float32)
        sums[:] = flushed(flushed(sums) + flushed(partial[..., 0] + partial[..., 1]))

    def tdpbsud(self, right: int, left: int, to: int) -> None:
        """Signed bytes of rows times unsigned ones of columns, in groups of four."""
        assert len({right, left, to}) == 3, "#UD"
        assert self.row_bytes[left] // 4 == self.rows[right], "#UD: depth"
        assert (self.rows[to], self.row_bytes[to]) == (self.rows[left], self.row_bytes[right]), "#UD: shape"
        a = self.data[left].view(np.int8).reshape(16, 16, 4).astype(np.int32)
        b = self.data[right].reshape(16, 16, 4).astype(np.int32)
        self.data[to].view(np.int32)[:] += np.einsum("rkg,kcg->rc", a, b).astype(np.int32)

    def _widen(self, tile: int) -> np.ndarray:
        halves = self.data[tile].view(np.uint16).astype(np.uint32) << 16
        return flushed(halves.view(np.float32).reshape(16, 16, 2))


def flushed(values: np.ndarray) -> np.ndarray:
    """Subnormal numbers become zero, in and out."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


class Cpu:
    def __init__(self, folder: Path) -> None:
        self._bochs = load_bochscpu(folder)
        self._session = self._bochs.Session()
        self._session.missing_page_handler = self._missing_page
        self._next_frame = 0x10000000
        self._mapped: set[int] = set()
        self._tables: dict[tuple[int, ...], tuple[int, int]] = {}
        self._traps: dict[int, tuple[str, str]] = {}
        self._failure: BaseException | None = None
        self._stack = (ctypes.c_char * (1 << 20))()
        self._exit = (ctypes.c_char * PAGE)(*TRAP)
        self._system_call = (ctypes.c_char * PAGE)(*TRAP, 0xFF, 0xE1)  # and jmp *%rcx, where SYSCALL keeps the way back
        self.tiles = Tiles()

    def call(self, function: Any, argument: Any) -> None:
        """Run ``void function(Struct*)`` on the emulated processor."""
        self._map_process()
        top = (ctypes.addressof(self._stack) + len(self._stack) - 4096) & ~63
        leave = ctypes.addressof(self._exit)
        ctypes.c_uint64.from_address(top - 8).value = leave
        state = self._user_state()
        state.rip, state.rsp = ctypes.cast(function, ctypes.c_void_p).value, top - 8
        state.rdi = ctypes.addressof(argument)
        self._session.cpu.state = state
        self._session.cpu.set_mode()
        self._failure = RuntimeError("the emulated processor stopped before the function returned")
        hook = self._bochs.Hook()
        hook.exception = self._on_exception
        hook.prefetch_hint = lambda *_: self._on_trap()
        self._session.run([hook])
        if self._failure is not None:
            raise self._failure

    def trap_tiles(self, library: Path) -> int:
        """Replace the AMX instructions of a loaded library by traps; return how many there are."""
        base = min(start for start, _, _, name in process_map() if name == str(library))
        listing = subprocess.run(["objdump", "-d", library], check=True, capture_output=True, text=True).stdout
        for found in filter(None, map(TILE_INSTRUCTION.match, listing.splitlines())):
            address, code = base + int(found[1], 16), bytes.fromhex(found[2])
            make_writable(address, len(code))
            ctypes.memmove(address, TRAP + b"\x90" * (len(code) - len(TRAP)), len(code))
            self._traps[address] = (found[3], found[4].strip())
        return len(self._traps)

    def _on_trap(self) -> None:
        at = self._session.cpu.rip - len(TRAP)
        try:
            if at == ctypes.addressof(self._exit):
                self._failure = None
                self._session.stop()
            elif at == ctypes.addressof(self._system_call):
                self._pass_to_kernel()
            elif at in self._traps:
                name, operands = self._traps[at]
                self.tiles.execute(name, self._operands(name, operands))
        except BaseException as error:
            self._failure = error
            self._session.stop()

    def _pass_to_kernel(self) -> None:
        cpu, libc = self._session.cpu, ctypes.CDLL(None, use_errno=True)
        assert cpu.rax not in STARTS_A_THREAD, "the emulated processor has one core: call with one thread"
        libc.syscall.restype = ctypes.c_long
        registers = (cpu.rax, cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9)
        result = libc.syscall(*map(ctypes.c_ulong, registers))
        cpu.rax = (-ctypes.get_errno() if result == -1 else result) & (1 << 64) - 1
        self._map_process()

    def _operands(self, name: str, text: str) -> list[Any]:
        values: list[Any] = []
        for part in re.findall(r"%tmm\d|-?(?:0x[0-9a-f]+)?\([^)]*\)", text):
            if part.startswith("%tmm"):
                values.append(int(part[4]))
                continue
            displacement, inner = part.rstrip(")").split("(")
            base, index, scale = [*inner.split(","), "", ""][:3]
            address = int(displacement or "0", 16) + self._register(base)
            values.append(address if name == "ldtilecfg" else (address, self._register(index) * int(scale or 1)))
        return values

    def _register(self, name: str) -> int:
        value = getattr(self._session.cpu, name.removeprefix("%")) if name else 0
        return value - (1 << 64) if value >> 63 else value

    def _on_exception(self, session: Any, cpu: int, vector: int, error: int) -> None:
        where = f"at {session.cpu.rip:#x}, cr2 {session.cpu.cr2:#x}"
        self._failure = RuntimeError(f"the emulated processor raised exception {vector} ({error}) {where}")
        session.stop()

    def _missing_page(self, address: int) -> None:
        raise RuntimeError(f"the emulated processor read physical memory that is not there, {address:#x}")

    def _user_state(self) -> Any:
        bochs = self._bochs
        state = bochs.State()
        bochs.cpu.set_long_mode(state)
        state.cr3 = self._table(())[0]
        state.cr4 |= 1 << 9 | 1 << 10 | 1 << 18  # OSFXSR, OSXMMEXCPT, OSXSAVE
        state.xcr0 = 0xE7  # x87, SSE, AVX, AVX-512
        state.lstar, state.star = ctypes.addressof(self._system_call), 0x10 << 32
        state.mxcsr, state.mxcsr_mask, state.rflags = 0x1F80, 0xFFFF, 2
        state.cs = self._segment(code=True)
        state.ss = state.ds = state.es = state.gs = self._segment(code=False)
        state.fs = self._segment(code=False, base=thread_pointer())
        return state

    def _segment(self, *, code: bool, base: int = 0) -> Any:
        flags = self._bochs.cpu.SegmentFlags()
        flags.P = flags.S = flags.A = flags.R = flags.W = True
        flags.DPL, flags.E, flags.L, flags.D = 3, code, code, not code
        segment = self._bochs.Segment()
        segment.base, segment.limit, segment.present = base, 0xFFFFFFFF, True
        segment.selector, segment.attr = (0x33 if code else 0x2B), int(flags)
        return segment

    def _map_process(self) -> None:
        for start, end, access, name in process_map():
            if access[0] == "r" and name not in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                for page in range(start, end, PAGE):
                    if page not in self._mapped:
                        self._map_page(page)

    def _map_page(self, page: int) -> None:
        self._mapped.add(page)
        keys = [tuple(page >> shift for shift in (39, 30, 21)[:level]) for level in range(4)]
        for level, shift in enumerate((39, 30, 21, 12)):
            target = self._table(keys[level + 1])[0] if level < 3 else self._frame(page)
            entry = self._table(keys[level])[1] + 8 * (page >> shift & 511)
            ctypes.c_uint64.from_address(entry).value = target | PRESENT_WRITABLE_USER

    def _table(self, key: tuple[int, ...]) -> tuple[int, int]:
        if key not in self._tables:
            table = self._bochs.memory.allocate_host_page()
            ctypes.memset(table, 0, PAGE)
            self._tables[key] = (self._frame(table), table)
        return self._tables[key]

    def _frame(self, page: int) -> int:
        frame = self._next_frame
        self._next_frame += PAGE
        self._bochs.memory.page_insert(frame, page)
        return frame


def process_map() -> list[tuple[int, int, str, str]]:
    rows = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, _, *name = line.split(None, 5)
        start, end = (int(part, 16) for part in span.split("-"))
        rows.append((start, end, access, name[0] if name else ""))
    return rows


def thread_pointer() -> int:
    """Return the base of segment fs, where thread-local variables live."""
    value = ctypes.c_uint64()
    libc = ctypes.CDLL(None)
    assert libc.syscall(158, 0x1003, ctypes.byref(value)) == 0  # arch_prctl(ARCH_GET_FS)
    return value.value


def make_writable(address: int, size: int) -> None:
    first = address & -PAGE
    last = (address + size + PAGE - 1) & -PAGE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(first), ctypes.c_size_t(last - first), 7) == 0
