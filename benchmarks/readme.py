"""Run README's first Python example over several seeds of its data, so that what it prints is no lucky draw.

    python benchmarks/readme.py --seeds 5

Prints the I-AUROC of the example itself, and of the same model on all four kinds of defects; writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import tempfile
from typing import Any

from common import ROOT

from mmad_bank.evaluation import FUSED, evaluate


def main() -> None:
    """Run the example once per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    print("seed  I-AUROC  of all kinds")
    for seed in range(parser.parse_args().seeds):
        print(f"{seed:4}  " + "  ".join(f"{value:7.3f}" for value in measure(seed)), flush=True)


def example(seed: int) -> str:
    """Return README's first Python example with a seed for its data."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    changed, count = re.subn(r'write_synthetic\("parts", ', f'write_synthetic("parts", seed={seed}, ', code)
    if count != 1:
        raise ValueError("README.md: expected one call of write_synthetic in the first Python example")
    return changed


def measure(seed: int) -> list[float | None]:
    """Run the example in a folder of its own, without what it prints; return I-AUROC of its result and of all kinds."""
    names: dict[str, Any] = {}
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        try:
            exec(compile(example(seed), "README.md", "exec"), names)
            everything = evaluate(names["model"], names["test"])
        finally:
            os.chdir(before)
    return [one.metrics[FUSED].image_auroc for one in (names["result"], everything)]


if __name__ == "__main__":
    main()
