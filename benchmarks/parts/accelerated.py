"""anomalib's Patchcore as it is, and accelerated by ``mmad_bank.integrations.anomalib``, on the same pictures.

Both describe the same prepared pictures by the same bundled features and draw the same random numbers. Measured are the
selection of the coreset, the search, prediction with and without the network, accuracy, and how far scores differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from anomalib_patchcore import HOW_TO_INSTALL, Patchcore
from common import Column, Table, alternate
from torch import Tensor

from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.sample import Sample
from mmad_bank.errors import MmadBankError
from mmad_bank.evaluation import FUSED, Evaluation
from mmad_bank.evaluation.tally import Tally
from mmad_bank.integrations.anomalib import accelerate
from mmad_bank.methods import PatchCore
from mmad_bank.methods.base import Prediction
from parts.real import LIMIT, PER_ROUND, categories, check, prepared, splits

STOCK, FAST = "anomalib", "anomalib, accelerated"
SEED = 0


@dataclass
class _Fitted:
    """A contestant with its bank, and what it says of the test pictures.

    Attributes:
        peer: anomalib's model on given features.
        evaluation: Its scores, and what they are worth.
    """

    peer: Patchcore
    evaluation: Evaluation

    @property
    def scores(self) -> np.ndarray:
        return np.array([one.score for one in self.evaluation.scores])


def run(arguments: argparse.Namespace, limits: Mapping[str, float]) -> list[Table]:
    """Fit and measure both on every category.

    Raises:
        SystemExit: anomalib is not there, or a category cannot be used; the message is one line.
    """
    del limits
    table = _empty_table(arguments)
    try:
        for category in categories(arguments):
            train, _, test = splits(arguments, category)
            rows, note = _measure(arguments, train, test)
            table.rows += [{"category": category, **row} for row in rows]
            table.notes.append(f"{category}: {note}")
    except ImportError as error:
        sys.exit(f"error: anomalib cannot be imported ({error}): {HOW_TO_INSTALL}")
    except MmadBankError as error:
        sys.exit(f"error: {error}")
    return [table]


def _measure(
    arguments: argparse.Namespace, train: SampleDataset, test: SampleDataset
) -> tuple[list[dict[str, Any]], str]:
    model = PatchCore(**PatchCore.bundled_arguments(), calibration="none").fit(train)
    network = model.extractors_.networks["rgb"]
    peers = {name: Patchcore(network.forward, model.grid) for name in (FAST, STOCK)}
    accelerate(peers[FAST].model)
    begin = time.perf_counter()
    embeddings = _embeddings(peers[STOCK], [sample.rgb for sample in prepared(model, train)])
    extraction = time.perf_counter() - begin
    coresets = alternate(
        {name: lambda peer=peer: _select(peer, embeddings) for name, peer in peers.items()},
        arguments.coresets, warmup=0,
    )  # fmt: skip
    samples = list(prepared(model, test))
    found = {name: _Fitted(peer, _evaluate(peer, samples, name)) for name, peer in peers.items()}
    timed = [sample.rgb for sample in samples[:: max(1, len(samples) // PER_ROUND)][:PER_ROUND]]
    searches = alternate(
        {name: lambda peer=peer: _search(peer, timed) for name, peer in peers.items()}, arguments.rounds
    )
    whole = alternate({name: lambda peer=peer: _predict(peer, timed) for name, peer in peers.items()}, arguments.rounds)
    rows = [
        {
            "name": name, "coreset": coresets.of(name)["median"], "coreset_ratio": coresets.ratio(STOCK, name),
            "fit": extraction + coresets.of(name)["median"], "bank": len(one.peer),
            "search_ms": searches.of(name)["median"] * 1e3, "search_ratio": searches.ratio(STOCK, name),
            "predict_ms": whole.of(name)["median"] * 1e3, "predict_ratio": whole.ratio(STOCK, name),
            "image_auroc": one.evaluation.metrics[FUSED].image_auroc,
            "pixel_auroc": one.evaluation.metrics[FUSED].pixel_auroc,
            "coreset_samples": coresets.of(name)["samples"], "search_samples": searches.of(name)["samples"],
            "predict_samples": whole.of(name)["samples"],
        }
        for name, one in found.items()
    ]  # fmt: skip
    rows[0] |= _compared(found, samples)
    size = f"{sum(map(len, embeddings))} × {embeddings[0].shape[1]} features of {len(embeddings)} training pictures"
    return rows, f"{size}, described in {extraction:.1f} s; {len(samples)} test pictures"


def _embeddings(peer: Patchcore, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Describe pictures as anomalib does in its training steps."""
    peer.model.train()
    for picture in pictures:
        peer.model(picture[None])
    found = list(peer.model.embedding_store)
    peer.model.embedding_store.clear()
    return found


def _select(peer: Patchcore, embeddings: Sequence[Tensor]) -> None:
    """Select the coreset anew, with the same random numbers each time."""
    peer.model.embedding_store[:] = embeddings
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - its projection draws its columns by scikit-learn's global generator
    peer.model.subsample_embedding(peer.RATIO)
    peer.model.eval()


def _evaluate(peer: Patchcore, samples: Sequence[Sample], name: str) -> Evaluation:
    tally = Tally((LIMIT,), 0, None)
    for sample in samples:
        tally.add(Prediction(*peer.predict(sample.rgb), sample))
    return tally.finish(name, {})


def _search(peer: Patchcore, pictures: Sequence[Tensor]) -> float:
    """Return the seconds per picture that all searches of its prediction take."""
    seconds, own = [], peer.model.nearest_neighbors

    def timed(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        found = own(*given, **named)
        seconds.append(time.perf_counter() - begin)
        return found

    peer.model.nearest_neighbors = timed
    try:
        _predict(peer, pictures)
    finally:
        del peer.model.nearest_neighbors
    return sum(seconds) / len(pictures)


def _predict(peer: Patchcore, pictures: Sequence[Tensor]) -> float:
    """Return the seconds per picture from a prepared picture to score and map."""
    begin = time.perf_counter()
    for picture in pictures:
        peer.predict(picture)
    return (time.perf_counter() - begin) / len(pictures)


def _compared(found: Mapping[str, _Fitted], samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what both banks have in common, and how far scores lie apart, with the own banks and with one bank."""
    stock, fast = found[STOCK], found[FAST]
    banks = [{row.numpy().tobytes() for row in one.peer.model.memory_bank} for one in (stock, fast)]
    own = fast.peer.model.memory_bank
    fast.peer.model.memory_bank = stock.peer.model.memory_bank
    same = np.array([fast.peer.predict(sample.rgb)[0] for sample in samples])
    fast.peer.model.memory_bank = own
    return {
        "common": len(banks[0] & banks[1]) / len(banks[0]),
        "difference": float(np.max(np.abs(fast.scores / stock.scores - 1))),
        "same_bank": float(np.max(np.abs(same / stock.scores - 1))),
    }


def _empty_table(arguments: argparse.Namespace) -> Table:
    times = [
        Column("coreset", "coreset, seconds", ".2f"), Column("coreset_ratio", "times as fast", ".1f"),
        Column("fit", "fit, seconds", ".1f"), Column("search_ms", "search, ms per picture", ".1f"),
        Column("search_ratio", "times as fast", ".1f"), Column("predict_ms", "predict, ms per picture", ".1f"),
        Column("predict_ratio", "times as fast", ".2f"),
    ]  # fmt: skip
    worth = [
        Column("image_auroc", "I-AUROC", ".4f"), Column("pixel_auroc", "P-AUROC", ".4f"),
        Column("difference", "largest difference of scores", ".1e"), Column("same_bank", "with one bank", ".1e"),
        Column("common", "coreset in common", ".2%"), Column("bank", "bank", "d", detail=True),
    ]  # fmt: skip
    title = f"anomalib's Patchcore on {arguments.data.resolve().name}, as it is and accelerated"
    table = Table(title, [Column("category", "category"), Column("name", "Patchcore"), *times, *worth], headline=True)
    table.notes = [
        "Both are anomalib's PatchcoreModel with its defaults, without the Lightning engine, on the bundled features of"
        " prepared pictures; both draw the same projection and the same first pick.",
        f"Coreset: median of {arguments.coresets} interleaved runs, projection included. Fit: all pictures read,"
        " prepared and described, and the coreset.",
        "Search: all nearest-neighbor searches of a prediction. Predict: from a prepared picture to score and map, with"
        f" the network. Medians of {arguments.rounds} interleaved rounds of up to {PER_ROUND} test pictures, one at a"
        " time.",
        "Differences of scores are relative, the largest of all test pictures: each with its own coreset, and both with"
        " anomalib's.",
    ]
    return table


__all__ = ["check", "run"]
