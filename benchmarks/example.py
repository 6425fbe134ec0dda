"""Run examples/fit_a_method.py over several seeds of its data, so that what it prints is no lucky draw.

    python benchmarks/example.py --seeds 5

Prints the I-AUROC of the example itself, and of the same model on all four kinds of defects; writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import ROOT

from mmad_bank.evaluation import FUSED, evaluate

sys.path.insert(0, str(ROOT / "examples"))
import fit_a_method


def main() -> None:
    """Run the example once per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of data sets; default: 5")
    print("seed  I-AUROC  of all kinds")
    for seed in range(parser.parse_args().seeds):
        print(f"{seed:4}  " + "  ".join(f"{value:7.3f}" for value in measure(seed)), flush=True)


def measure(seed: int) -> list[float | None]:
    """Run the example in a folder of its own; return I-AUROC of its result and of all kinds."""
    with tempfile.TemporaryDirectory() as folder:
        train, test = fit_a_method.make_data(Path(folder) / "parts", seed)
        model = fit_a_method.fit(train, Path(folder) / "model")
        samples = fit_a_method.select(test), test
        return [evaluate(model, one).metrics[FUSED].image_auroc for one in samples]


if __name__ == "__main__":
    main()
