"""Models as the service sees them: tensors in, tensors out, several requests at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmad_bank.errors import InputError, MmadBankError, did_you_mean
from mmad_bank.serving.problems import Problem

if TYPE_CHECKING:
    import torch

    from mmad_bank.bank import MemoryBank
    from mmad_bank.bank.scores import Rule, Scores

VERSION = "1"
"""The one version that every model has."""


@dataclass(frozen=True)
class TensorInfo:
    """What the protocol tells of an input or output; -1 is any number."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the protocol's words."""
        own: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        return own | ({"optional": True} if self.optional else {})


@dataclass(frozen=True)
class Card:
    """What is known of a model without having it in memory.

    Attributes:
        platform: What kind of model it is: ``mmad-bank`` for a bank, ``mmad-bank_patchcore`` for a PatchCore and so on.
        inputs: Its inputs.
        outputs: Its outputs.
        facts: More about it, JSON-able.
    """

    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def takes_pictures(self) -> bool:
        """Whether it scores pictures or point clouds, and not features."""
        return "patches" not in {one.name for one in self.inputs}


@dataclass
class Work:
    """A request's part of a batch.

    Attributes:
        inputs: Tensors by name; of a picture's door, samples under ``""``.
        key: What is alike of the requests that can be computed together.
        size: Number of images.
        options: What else the model must know.
    """

    inputs: Mapping[str, Any]
    key: Hashable
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model says to a request.

    Attributes:
        outputs: Tensors by name.
        parameters: Numbers and texts that count for all images: threshold and false-alarm rate, for instance.
        verdicts: Verdicts of the images, for the metrics.
        value: What no tensor is: predictions of a picture's door.
    """

    outputs: Mapping[str, np.ndarray]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Sequence[str] = ()
    value: Any = None


class Served(Protocol):
    """A loaded model."""

    card: Card

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Compute requests of one key together."""


def computed(model: Served, works: Sequence[Work]) -> list[Answer | Exception]:
    """Compute requests together; if they cannot be, each by itself, so that a bad one spoils no other."""
    try:
        return list(model.run(works))
    except (MmadBankError, RuntimeError, ValueError, MemoryError) as error:
        if len(works) == 1:
            return [error]
    results: list[Answer | Exception] = []
    for work in works:
        results += computed(model, [work])
    return results


def check_inputs(card: Card, inputs: Mapping[str, np.ndarray]) -> None:
    """Refuse inputs that a model does not have, and ones that are missing.

    Raises:
        InputError: There are some.
    """
    known = {one.name: one for one in card.inputs}
    names = ", ".join(known)
    for name in inputs:
        if name not in known:
            raise InputError(f"inputs: expected {names}, found {name[:60]!r}")
    for name, one in known.items():
        if name not in inputs and not one.optional:
            raise InputError(f"inputs: expected {names}, found no {name}")


# Banks.

RULE_PARAMETERS = ("reweight", "n_neighbors")
_ENOUGH = 32768  # patches; a search of more is no faster
_space = threading.local()
RATE = "false_alarm_rate"


class ServedBank:
    """A bank: features of images in, scores of patches and images out.

    Args:
        bank: The bank.
    """

    def __init__(self, bank: MemoryBank) -> None:
        self._bank = bank
        bank.search_index  # noqa: B018 (made now, so that the first request does not wait, and its bytes are counted)
        self.card = _card_of_bank(bank)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds; what is mapped counts, as searching touches it."""
        return self._bank.nbytes + self._bank.mapped_nbytes

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Score the images of several requests together; all have as many patches."""
        return [answer for group in _groups(works) for answer in self._scored(group)]

    def _scored(self, works: Sequence[Work]) -> list[Answer]:
        rows = [_tensor(work.inputs["patches"]) for work in works]
        tensor = rows[0].float() if len(rows) == 1 else _joined(rows)
        options = works[0].options
        scores = self._bank.score(tensor, reweight=options["reweight"], n_neighbors=options["n_neighbors"]).cpu()
        answers, first = [], 0
        for work in works:
            own = type(scores)(*(column[first : first + work.size] for column in scores)).by(scores.rule)
            answers.append(self._answer(own, work.options))
            first += work.size
        return answers

    def _answer(self, scores: Scores, options: Mapping[str, Any]) -> Answer:
        outputs = {
            "patch_scores": scores.patch.numpy(),
            "image_scores": scores.image.numpy(),
            "nearest": scores.nearest.numpy(),
        }
        rule = scores.rule
        parameters: dict[str, Any] = (
            {} if rule is None else {"reweight": rule.reweight, "n_neighbors": rule.n_neighbors}
        )
        if not self._judges(scores, options):
            return Answer(outputs, parameters)
        found = self._bank.judge(scores, options[RATE])
        words = np.where(found.bad.numpy(), "bad", "good").astype(object)
        outputs |= {"p_values": found.p_values.numpy(), "verdicts": words, "bad_patches": found.bad_patches.numpy()}
        parameters |= {
            "threshold": found.threshold.score, "patch_threshold": found.patch_threshold.score,
            RATE: found.threshold.rate, "extrapolated": found.threshold.extrapolated,
        }  # fmt: skip
        return Answer(outputs, parameters, list(words))

    def _judges(self, scores: Scores, options: Mapping[str, Any]) -> bool:
        """Say whether there are verdicts of scores; where they are asked for in words, whoever judges says why not."""
        known = self._bank.calibration
        if options["judged"]:
            return True
        return known is not None and known.rule == scores.rule and known.patches == scores.patch.shape[1]


def _tensor(rows: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, copied if PyTorch could not use its memory."""
    import torch

    return torch.from_numpy(np.require(rows, requirements=["C", "A", "W"]))


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors (B, P, D) behind each other, float32, in this thread's memory for that: new memory costs more."""
    import torch

    shape = (sum(map(len, rows)), *rows[0].shape[1:])
    size = math.prod(shape)
    if getattr(_space, "values", torch.empty(0)).numel() < size:
        _space.values = torch.empty(size)
    together: torch.Tensor = _space.values[:size].view(shape)
    return torch.cat(list(rows), out=together)


def _groups(works: Sequence[Work]) -> Iterator[list[Work]]:
    """Put works together until they have enough patches for the search: more would be copied for nothing."""
    group, rows = list[Work](), 0
    for work in works:
        group.append(work)
        rows += work.inputs["patches"].shape[0] * work.inputs["patches"].shape[1]
        if rows >= _ENOUGH:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _card_of_bank(bank: MemoryBank) -> Card:
    outputs = [
        TensorInfo("patch_scores", "FP32", (-1, -1)),
        TensorInfo("image_scores", "FP32", (-1,)),
        TensorInfo("nearest", "INT64", (-1, -1)),
    ]
    facts: dict[str, Any] = {
        "vectors": len(bank), "dim": bank.dim, "index": bank.index, "extractor": bank.extractor, "calibrated": False,
        **_rule_facts(None),
    }  # fmt: skip
    if bank.calibration is not None:
        outputs += [
            TensorInfo("p_values", "FP64", (-1,)),
            TensorInfo("verdicts", "BYTES", (-1,)),
            TensorInfo("bad_patches", "BOOL", (-1, -1)),
        ]
        facts |= {"calibrated": True, "patches": bank.calibration.patches, **_rule_facts(bank.calibration.rule)}
    return Card("mmad-bank", (TensorInfo("patches", "FP32", (-1, -1, bank.dim)),), tuple(outputs), facts)


def _rule_facts(rule: Rule | None) -> dict[str, Any]:
    return {
        "reweight": "m3dm" if rule is None else rule.reweight,
        "n_neighbors": None if rule is None else rule.n_neighbors,
    }


def bank_work(
    card: Card, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any], wanted: Sequence[str]
) -> Work:
    """Return what a bank is to compute for a request.

    Args:
        card: The bank's card.
        inputs: Tensors of the request.
        parameters: Its parameters: ``reweight``, ``n_neighbors`` and ``false_alarm_rate`` count.
        wanted: Outputs that it names.

    Raises:
        InputError: The tensors are of another shape or type, or a parameter is out of its range.
    """
    from mmad_bank import scoring

    rows = inputs["patches"]
    rows = rows[None] if rows.ndim == 2 else rows
    dim = card.inputs[0].shape[-1]
    if rows.ndim != 3 or rows.shape[2] != dim or 0 in rows.shape:
        found = list(inputs["patches"].shape)
        raise InputError(f"inputs: patches: expected shape [B, P, {dim}] or [P, {dim}], not empty, found {found}")
    if rows.dtype not in (np.float32, np.float16):
        raise InputError(f"inputs: patches: expected FP32 or FP16, found {rows.dtype.name}")
    check_spelling(parameters, (*RULE_PARAMETERS, RATE))
    given = {name: parameters[name] for name in RULE_PARAMETERS if name in parameters}
    reweight = given.get("reweight", card.facts["reweight"])
    neighbors = given.get("n_neighbors", None if "reweight" in given else card.facts["n_neighbors"])
    if neighbors is not None and (not isinstance(neighbors, int) or isinstance(neighbors, bool)):
        raise InputError(f"parameters: n_neighbors: expected a number, found {neighbors!r:.40}")
    if not isinstance(reweight, str):
        raise InputError(f"parameters: reweight: expected a text, found {reweight!r:.40}")
    neighbors = scoring.check_reweight(reweight, neighbors)
    judged = bool({"p_values", "verdicts", "bad_patches"} & set(wanted)) or RATE in parameters
    options = {"reweight": reweight, "n_neighbors": neighbors, RATE: rate_of(parameters), "judged": judged}
    return Work({"patches": rows}, (rows.shape[1], reweight, neighbors), len(rows), options)


def check_spelling(parameters: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a parameter whose name is nearly a known one: it would count for nothing, without a word.

    Others are passed over, as clients send parameters of other servers.

    Raises:
        InputError: There is such a name.

    Example:
        >>> check_spelling({"false_alarm_rate": 0.1, "priority": 1}, ["false_alarm_rate"])
    """
    for name in parameters:
        near = "" if name in known else did_you_mean(name, known)
        if near:
            raise InputError(f"parameters: expected {', '.join(known)}, found {name[:40]!r}{near}")


def rate_of(parameters: Mapping[str, Any]) -> float | None:
    """Return the false-alarm rate among parameters; None if there is none.

    Raises:
        InputError: It is no number above 0 and below 1.

    Example:
        >>> rate_of({"false_alarm_rate": 0.05}), rate_of({})
        (0.05, None)
    """
    rate = parameters.get(RATE)
    if rate is None:
        return None
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 < rate < 1:
        raise InputError(f"parameters: {RATE}: expected a number above 0 and below 1, found {rate!r:.40}")
    return float(rate)


def check_wanted(card: Card, wanted: Sequence[str]) -> None:
    """Refuse outputs that a model does not have.

    Raises:
        Problem: There is one.
    """
    known = [one.name for one in card.outputs]
    for name in wanted:
        if name not in known:
            raise Problem(400, f"outputs: expected some of {', '.join(known)}, found {name[:60]!r}")
