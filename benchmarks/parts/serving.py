"""The service under load: 64 clients against the direct batched call, and a thousand banks in one process.

Run as a program it is the clients: one JSON argument in, one JSON line out.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop
from common import Column, Options, Table
from inputs import extract_768, search_set

from mmad_bank.bank import MemoryBank
from mmad_bank.serving.tensors import HEADER
from mmad_bank.synthetic import textures
from parts.process import run_fresh

CLIENTS, BATCH = 64, 32
SECONDS = 60.0
BANKS, BANK_ROWS, MEMORY = 1000, 700, 1_000_000_000
AIM = 2_000_000_000

LOAD_COLUMNS = [
    Column("name", "who asks"),
    Column("rate", "images per second", ".1f"),
    Column("ratio", "× direct", ".3f"),
    Column("p50", "p50, ms", ".1f"),
    Column("p95", "p95, ms", ".1f"),
    Column("p99", "p99, ms", ".1f"),
    Column("cpu", "clients' own CPU, ms per request", ".2f"),
    Column("requests", "requests", "d", detail=True),
    Column("errors", "errors", "d"),
    Column("different", "other answers", "d", detail=True),
]
BANK_COLUMNS = [
    Column("name", "which requests"),
    Column("requests", "requests", "d"),
    Column("rate", "requests per second", ".1f"),
    Column("p50", "p50, ms", ".1f"),
    Column("p99", "p99, ms", ".1f"),
    Column("errors", "errors", "d"),
    Column("loads", "models loaded so far", "d", detail=True),
    Column("resident_mb", "models in memory, MB", ".0f"),
    Column("peak_mb", "the process at its highest, MB", ".0f"),
    Column("verdict", f"< {AIM / 1e9:.0f} GB"),
]


def run(options: Options, limits: Mapping[str, float]) -> list[Table]:
    """Serve a bank of 19 129 × 768 to 64 clients, and 1,000 small banks to 16."""
    n_images, n_bank = (2, 300) if options.quick else (244, 19129)
    data = search_set(n_images, n_bank, n_queries=98 if options.quick else 784)
    with tempfile.TemporaryDirectory(prefix="mmad-bank-serving-", dir=options.workdir) as folder:
        return [_load(Path(folder) / "one", data, options), _banks(Path(folder) / "many", data, options)]


# ---------------------------------------------------------------------------------------------------------------------
# The service


class _Server(NamedTuple):
    """A service in a process of its own."""

    port: int
    pid: int

    def peak(self) -> int:
        """Bytes of its resident set at the highest, file pages included."""
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def metric(self, name: str) -> float:
        """Return a number that it tells Prometheus."""
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def _serving(folder: Path, *options: str) -> Iterator[_Server]:
    command = [sys.executable, "-m", "mmad_bank.cli", "serve", str(folder), "--port", "0", "--log", "none", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"serve: {process.communicate()[1][-2000:]}")
        yield _Server(int(line.rstrip().rpartition(":")[2]), process.pid)
    finally:
        process.terminate()
        process.communicate()


def _body(features: np.ndarray) -> tuple[bytes, int]:
    """Return a request with binary tensors, and the length of its JSON."""
    kind = "FP16" if features.dtype == np.float16 else "FP32"
    tensor = {
        "name": "patches", "datatype": kind, "shape": list(features.shape),
        "parameters": {"binary_data_size": features.nbytes},
    }  # fmt: skip
    outputs = [
        {"name": name, "parameters": {"binary_data": True}} for name in ("patch_scores", "image_scores", "nearest")
    ]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    return head + features.tobytes(), len(head)


# ---------------------------------------------------------------------------------------------------------------------
# Many clients, one bank


def _load(folder: Path, data: Any, options: Options) -> Table:
    folder.mkdir()
    MemoryBank(data.bank).save(folder / "bank.safetensors")
    bank = MemoryBank.load(folder / "bank.safetensors")
    images = _images(2 if options.quick else BATCH, data)
    rounds = max(1, options.rounds)
    seconds = 1.0 if options.quick else SECONDS / rounds
    asks = {
        f"{CLIENTS} clients, binary FP32": (CLIENTS, np.float32),
        f"{CLIENTS} clients, binary FP16": (CLIENTS, np.float16),
        "1 client, binary FP32": (1, np.float32),
    }
    direct, served = [], {name: [] for name in asks}
    bank.score(images[:1])
    with _serving(folder, "--max-batch", str(BATCH)) as server:
        for _ in range(rounds):
            direct.append(_direct(bank, images, seconds))
            for name, (clients, kind) in asks.items():
                requests = _requests(folder, images.astype(kind))
                call = {"port": server.port, "clients": clients, "seconds": seconds, "requests": requests}
                served[name].append(run_fresh("serving", call))
    rate = statistics.median(direct)
    batch = f"batches of {len(images)} images"
    table = Table(
        f"The service against the direct call: {len(data.bank)} × {data.bank.shape[1]}", LOAD_COLUMNS, headline=True
    )
    table.rows = [{"name": f"bank.score in Python, {batch}", "rate": rate, "ratio": 1.0}]
    for name, runs in served.items():
        ratios = [one["rate"] / own for one, own in zip(runs, direct, strict=True)]
        table.rows.append({"name": name, "ratio": statistics.median(ratios), **_joined(runs)})
    table.notes = [
        f"A request is one of {len(images)} images of {images.shape[1]} patches. Service, clients and the direct call"
        f" share the machine's cores and take turns, {rounds} times {seconds:.0f} s each. The ratio is the median over"
        " the turns.",
        "The clients' own CPU is that of their process, which on a machine of its own would not slow the service down.",
        "'Other answers': bodies that are not, byte for byte, that of the first request with the same image.",
    ]
    return table


def _requests(folder: Path, images: np.ndarray) -> list[list[Any]]:
    """Write a request for each image; return the model, the file, and the length of the JSON of each."""
    written: list[list[Any]] = []
    for number, image in enumerate(images):
        path = folder / f"request-{number}.bin"
        body, head = _body(image[None])
        path.write_bytes(body)
        written.append(["bank", str(path), head])
    return written


def _images(n: int, data: Any) -> np.ndarray:
    """Return the features of images that were not learned, all of them different: equal patches count once."""
    patches = len(data.queries["good"])
    features = extract_768(textures.texture_images(n, split="test"))
    return features.reshape(n, -1, features.shape[-1])[:, :patches]


def _direct(bank: MemoryBank, images: np.ndarray, seconds: float) -> float:
    """Return the images per second of the direct call on whole batches."""
    begin = time.perf_counter()
    done = 0
    while time.perf_counter() - begin < seconds:
        bank.score(images)
        done += len(images)
    return done / (time.perf_counter() - begin)


def _joined(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put several runs of clients together."""
    times = np.concatenate([run["ms"] for run in runs])
    quantiles = dict(zip(("p50", "p95", "p99"), np.percentile(times, (50, 95, 99)).tolist(), strict=True))
    counts = {name: sum(run[name] for run in runs) for name in ("errors", "different")}
    counts["cpu"] = 1e3 * sum(run["cpu"] for run in runs) / len(times)
    return {"rate": statistics.median(run["rate"] for run in runs), "requests": len(times), **quantiles, **counts}


# ---------------------------------------------------------------------------------------------------------------------
# Many banks


def _banks(folder: Path, data: Any, options: Options) -> Table:
    n_banks, rows = (20, 50) if options.quick else (BANKS, BANK_ROWS)
    memory = 5_000_000 if options.quick else MEMORY
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(n_banks):
        MemoryBank(data.bank[generator.permutation(len(data.bank))[:rows]]).save(folder / f"{number:04d}.bank")
    path = folder / "request.bin"
    body, head = _body(data.queries["good"][None, :98])
    path.write_bytes(body)
    requests = [[f"{number:04d}", str(path), head] for number in range(n_banks)]
    title = f"{n_banks:,} banks of {rows} × {data.bank.shape[1]} in one process, --memory {memory / 1e6:.0f}MB"
    table = Table(title, BANK_COLUMNS)
    with _serving(folder, "--memory", f"{memory}B") as server:
        for name in ("every bank once", "every bank again, in another order", "a tenth of them, ten times"):
            chosen = requests if "tenth" not in name else requests[: n_banks // 10] * 10
            random.Random(name).shuffle(chosen)
            found = run_fresh("serving", {"port": server.port, "clients": 16, "seconds": None, "requests": chosen})
            row = {
                "name": name,
                **_joined([found]),
                "loads": int(server.metric('mmad_bank_model_events_total{event="loaded"}')),
            }
            row |= {
                "resident_mb": server.metric("mmad_bank_models_resident_bytes") / 1e6,
                "peak_mb": server.peak() / 1e6,
            }
            table.rows.append(row | {"verdict": "yes" if server.peak() < AIM else "NO"})
    table.notes = [
        "16 clients. The process's memory is its resident set with libraries and file pages (VmHWM), at its highest"
        " since it began. On disk the banks take"
        f" {sum(one.stat().st_size for one in folder.glob('*.bank')) / 1e9:.1f} GB."
    ]
    return table


# ---------------------------------------------------------------------------------------------------------------------
# The clients


async def ask(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Send requests over some connections: for some time, or each once, and return what came of it."""
    bodies = {path: Path(path).read_bytes() for _, path, _ in arguments["requests"]}
    sent = [_head(model, len(bodies[path]), head) + bodies[path] for model, path, head in arguments["requests"]]
    seconds, times, first = arguments["seconds"], list[float](), dict[int, bytes]()
    counts = {"errors": 0, "different": 0}
    order = iter(range(len(sent)))
    begin, used = time.perf_counter(), time.process_time()

    async def client(own: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", arguments["port"], limit=1 << 20)
        while True:
            own += 1
            number = next(order, None) if seconds is None else own % len(sent)
            if number is None or (seconds is not None and time.perf_counter() - begin > seconds):
                break
            start = time.perf_counter()
            writer.write(sent[number])
            await writer.drain()
            status, body = await _answer(reader)
            times.append((time.perf_counter() - start) * 1e3)
            counts["errors"] += status != 200
            counts["different"] += seconds is not None and first.setdefault(number, body) != body
        writer.close()

    await asyncio.gather(*(client(own) for own in range(arguments["clients"])))
    taken = time.perf_counter() - begin
    return {"rate": len(times) / taken, "ms": times, "cpu": time.process_time() - used, **counts}


def _head(model: str, size: int, head: int) -> bytes:
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Length: {size}",
        f"{HEADER}: {head}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = re.search(r"^content-length: (\d+)", lines, re.MULTILINE)
    assert size is not None, lines
    return int(lines.split()[1]), await reader.readexactly(int(size[1]))


if __name__ == "__main__":
    print(json.dumps(uvloop.run(ask(json.loads(sys.argv[1])))))
