"""A method from samples to a score, a map, what explains them, and its metrics, on a small synthetic data set.

    pip install '.[demo]' && python examples/fit_a_method.py

It takes a quarter of a minute on two cores. PatchCore sees color only, so of the synthetic parts' defects the example
takes the two kinds that show in the picture; the others lie in the shape, or in a color at the wrong shape, and are
what the methods with point clouds are for. `python benchmarks/example.py` runs it on other seeds, and on all kinds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmad_bank.data import SampleDataset, open_dataset
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import Method, PatchCore, load
from mmad_bank.synthetic import write_synthetic

CATEGORY = "stud_tray"
SEEN = ("good", "color", "both")
"""Kinds of test samples whose defects show in the picture."""


def make_data(folder: Path, seed: int = 0) -> tuple[SampleDataset, SampleDataset]:
    """Write the data set; return its training and test samples."""
    write_synthetic(folder, size=192, n_train=20, n_validation=0, n_test=18, categories=[CATEGORY], seed=seed)
    return open_dataset(folder, CATEGORY, "train"), open_dataset(folder, CATEGORY, "test")


def fit(train: SampleDataset, folder: Path) -> Method:
    """Fit a method, save it, and load it again; M3DM(), BTF(), ... have the same interface."""
    PatchCore("efficientnet_lite0", rgb_layers=(1, 2, 4)).fit(train).save(folder)
    return load(folder)


def select(samples: SampleDataset) -> SampleDataset:
    """Return the samples whose defects a method without point clouds can see."""
    return samples.select(i for i, one in enumerate(samples.records) if one.defect in SEEN)


def main() -> None:
    """Fit, predict one sample, explain its score, and evaluate all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fit_a_method"), help="folder for the data set and the model")
    folder = parser.parse_args().out

    train, test = make_data(folder / "parts")
    model = fit(train, folder / "tray.model")
    seen = select(test)
    prediction = model.predict(seen[-1])
    print(f"{prediction.sample.id}: score {prediction.score:.3f}, map {tuple(prediction.map.shape)}")
    print("nearest normal patch:", model.explain(prediction)[0])
    print(evaluate(model, seen).to_markdown())


if __name__ == "__main__":
    main()
