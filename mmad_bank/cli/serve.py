"""The command that answers over HTTP: serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mmad_bank._internal.terminal import printable, say
from mmad_bank.cli._command import add
from mmad_bank.cli._options import Device, TrustIndex
from mmad_bank.cli._values import check_device, parse_duration, parse_size
from mmad_bank.cli._words import LogFormat, Runtime, option

_NO_END = 86400.0


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, serve)


def serve(
    models: Annotated[
        Path,
        typer.Argument(
            metavar="MODELS",
            help="Folder of saved models and bank files (.safetensors, .bank); or one of these.",
            show_default=False,
        ),
    ],
    host: Annotated[str, option("--host")] = "127.0.0.1",
    port: Annotated[int, option("--port")] = 8000,
    api_key: Annotated[Path | None, option("--api-key")] = None,
    memory: Annotated[str | None, option("--memory", "loaded models", " (default: half of the machine's)")] = None,
    max_batch: Annotated[int, option("--max-batch")] = 32,
    batch_delay: Annotated[str, option("--batch-delay")] = "2ms",
    max_body: Annotated[str, option("--max-body")] = "64MB",
    max_queue: Annotated[int, option("--max-queue")] = 256,
    timeout: Annotated[str, option("--timeout")] = "30s",
    concurrency: Annotated[int, option("--concurrency")] = 2,
    log: Annotated[LogFormat, option("--log")] = "text",
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    runtime: Annotated[Runtime | None, option("--runtime")] = None,
    data: Annotated[Path | None, option("--data")] = None,
) -> None:
    """Serve models over HTTP: scores by the Open Inference Protocol v2, pictures by POST /predict/MODEL, a page to try.

    A model is loaded on first use, loaded anew when its file or folder is replaced, and let go when others need the
    memory. Ctrl-C and SIGTERM end the service after the requests in work.
    """
    # Threads of PyTorch's operations wait for the next one at work, which takes a core from reading requests. Whoever
    # has set it otherwise has it so; it counts until PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mmad_bank.serving import Settings, run
    from mmad_bank.serving.running import check_extra
    from mmad_bank.serving.settings import LOOPBACK, read_keys

    check_extra()
    settings = Settings(
        models, str(check_device(device)), None if memory is None else parse_size(memory), max_batch,
        parse_duration(batch_delay, "--batch-delay") or 0.0, parse_size(max_body, "--max-body"), max_queue,
        parse_duration(timeout, "--timeout") or _NO_END, concurrency, read_keys(api_key), log, trust_index, runtime,
        data,
    )  # fmt: skip
    if host not in LOOPBACK and not settings.api_keys:
        say(f"warning: whoever reaches {host} may use the service; --api-key asks for a key")
    run(settings, host, port, ready=_say_ready)
    say("stopped")


def _say_ready(address: str, server: Any) -> None:
    """Say where the service is, and what it serves."""
    names = [one["name"] for one in server.config.app.state.backend.repository.index()]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    say(f"serving {len(names):,} model{'' if len(names) == 1 else 's'}{': ' if names else ''}{printable(shown)}")
    print(address, flush=True)
