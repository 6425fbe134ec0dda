"""What a service may be told: limits, and where its models are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmad_bank._internal.machine import machine_memory
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.methods.options import Runtime

KEY_VARIABLE = "MMAD_BANK_API_KEY"
"""Environment variable with the key that clients must send."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LogFormat = Literal["text", "json", "none"]


@dataclass(frozen=True)
class Settings:
    """Settings of a service.

    Attributes:
        models: Folder of the models: saved models (folders with ``model.json``) and bank files; or one of these.
        device: Device to compute on.
        memory: Bytes that loaded models may take together; None takes half of the machine's memory.
        max_batch: Largest number of images that are scored together; a single request may hold as many.
        batch_delay: Seconds that a request waits at most for others to be scored with.
        max_body: Largest body of a request in bytes.
        max_queue: Largest number of requests for scores that are being read, waiting or computed; more are answered
            with 503.
        timeout: Seconds after which a request is given up.
        concurrency: Number of models that are computed at the same time.
        api_keys: Keys of which a client must send one; empty for none.
        log_format: Form of the log on standard error: a line of text or of JSON for each request, or nothing.
        trust_index: Whether FAISS may read the indices in the files.
        runtime: Library that runs the networks of color images on a CPU; None takes each model's own.
        data: Folder of the data that the models were fitted on, a model's in a folder of its name or all together: the
            normal patches that explain a score are shown from there. None names them only.

    Raises:
        InputError: A number is out of its range.

    Example:
        >>> Settings("models", max_batch=4).max_batch
        4
        >>> Settings("models", max_batch=0)
        Traceback (most recent call last):
        ...
        mmad_bank.errors.InputError: max_batch: expected at least 1, found 0
    """

    models: str | os.PathLike[str]
    device: str = "cpu"
    memory: int | None = None
    max_batch: int = 32
    batch_delay: float = 0.002
    max_body: int = 64_000_000
    max_queue: int = 256
    timeout: float = 30.0
    concurrency: int = 2
    api_keys: tuple[str, ...] = ()
    log_format: LogFormat = "none"
    trust_index: bool = False
    runtime: Runtime | None = None
    data: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_body", "max_queue", "concurrency", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        if not 0 <= self.batch_delay <= 10:
            raise InputError(f"batch_delay: expected 0 to 10 seconds, found {self.batch_delay:g}")
        if not 0 < self.timeout <= 86400:
            raise InputError(f"timeout: expected above 0 and up to 86400 seconds, found {self.timeout:g}")
        if self.data is not None and not Path(self.data).is_dir():
            raise InputError(f"data: expected a folder of training images, found none at {self.data}")
        for key in self.api_keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError("api_key: expected keys of at least 8 visible ASCII characters, found another")

    @property
    def budget(self) -> int:
        """Bytes that loaded models may take together."""
        return machine_memory() // 2 if self.memory is None else self.memory


def read_keys(file: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Read the keys of a file, a line each, or the one in the environment where no file is given.

    Raises:
        InputError: The file cannot be read or holds none.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return (key,) if key else ()
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise InputError(f"{file}: expected a key on a line, found none")
    return keys
