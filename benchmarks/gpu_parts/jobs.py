"""Processes with a time limit each, several at a time: a hang or a broken CUDA context costs one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from common import ROOT

LEAST_S = 5.0  # with less time than that nothing is started
_POLL_S = 0.1
_GRACE_S = 3.0  # between asking a process to end and killing it
_MARKS = ("WRONG", "Error", "ERROR", "FAILED", "Invalid", "error:")


@dataclass(frozen=True)
class Job:
    """A command, and the seconds that it may take."""

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job: ``"ok"``, ``"FAILED (code)"``, ``"TIMEOUT (limit)"`` or ``"not run"``."""

    name: str
    verdict: str
    seconds: float = 0.0
    text: str = ""

    @property
    def ok(self) -> bool:
        return self.verdict == "ok"

    @property
    def hung(self) -> bool:
        return self.verdict.startswith("TIMEOUT")

    @property
    def last_line(self) -> str:
        """Last line that was printed; of a job that failed, the last one that names an error, if one does."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        named = [] if self.ok else [line for line in lines if any(mark in line for mark in _MARKS)]
        return ([*lines[-1:], *named[-1:]] or [""])[-1][:200]


class Process:
    """A job that runs; one that ``waits`` does not begin before :meth:`go`, and its time counts from there."""

    def __init__(self, job: Job, *, waits: bool = False) -> None:
        self.job = job
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self._shown = 0
        self._limit = job.limit
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            job.command, cwd=ROOT, env={**os.environ, **job.environment}, stdout=self._output, stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE if waits else subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def go(self, limit: float, told: Mapping[str, object]) -> None:
        """Let a process begin that waits for a line on its standard input."""
        self._began, self._limit = time.monotonic(), limit
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already: its outcome says how
            self._process.stdin.write(f"{json.dumps(told)}\n".encode())
            self._process.stdin.close()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def new_text(self) -> str:
        """Return whole lines that it has printed since the last call."""
        text = os.pread(self._output.fileno(), 1 << 24, self._shown)
        if self._process.poll() is None:
            text = text[: text.rfind(b"\n") + 1]
        self._shown += len(text)
        return text.decode(errors="replace")

    def outcome(self) -> Outcome | None:
        """Return the outcome if it has ended or its time is over, else None."""
        code, took = self._process.poll(), self.seconds()
        if code is None and took < self._limit:
            return None
        verdict = f"TIMEOUT ({self._limit:.0f} s)" if code is None else "ok" if code == 0 else f"FAILED ({code})"
        self.end()
        size = os.fstat(self._output.fileno()).st_size
        text = os.pread(self._output.fileno(), 1 << 22, max(0, size - (1 << 22))).decode(errors="replace")
        return Outcome(self.job.name, verdict, took, text)

    def end(self) -> None:
        """End it and what it has started: ask first, so that it can end its own processes."""
        if self._process.poll() is not None:
            return
        for sign, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 10.0)):
            with suppress(ProcessLookupError):  # the second time: nothing of its group is left
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)


def run_jobs(jobs: Sequence[Job], at_once: int, seconds: float) -> Iterator[Outcome]:
    """Run jobs, yielding each as it ends; those for which no time is left at last, as "not run"."""
    end, waiting, running = time.monotonic() + seconds, list(jobs), list[Process]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once and end - time.monotonic() > LEAST_S:
                job = waiting.pop(0)
                limit = min(job.limit, end - time.monotonic())
                running.append(Process(Job(job.name, job.command, limit, job.environment)))
            if not running:
                break
            time.sleep(_POLL_S)
            for process in list(running):
                outcome = process.outcome()
                if outcome is not None:
                    running.remove(process)
                    yield outcome
    finally:
        for process in running:
            process.end()
    for job in waiting:
        yield Outcome(job.name, "not run")
