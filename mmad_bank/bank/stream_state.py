"""What a bank of a stream keeps in its file beside the vectors, so that the stream can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import check_finite
from mmad_bank._internal.json_values import as_table
from mmad_bank._internal.manifest import Manifest, parse_json
from mmad_bank.bank.stream_nets import LEAST_FACTOR, Net, best_possible

_REACH, _NETS, _ROWS, _NOTE = "stream_reach", "stream_nets", "stream_net_rows", "stream_note"
_LARGEST_NOTE = 1 << 30  # bytes


@dataclass(frozen=True, eq=False)
class StreamState:
    """What :class:`mmad_bank.bank.StreamingBank` knows beside vectors, rows and sources.

    Attributes:
        size: Largest number of vectors.
        factor: Proved factor.
        spacing: Distance within which a row counts as covered.
        floor: Radius that the best ``size`` centers leave at least.
        reach: float64 (M,) distance of the farthest row that each vector stands for, at most.
        nets: The nets that prove the factor.
        moments: Count, shift, sum and sum of squares of all values; None without standardization.
        note: What the program that follows the stream keeps.
    """

    size: int
    factor: float
    spacing: float
    floor: float
    reach: Tensor
    nets: tuple[Net, ...]
    moments: tuple[int, float, float, float] | None
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def optimum(self) -> float:
        """Radius that the best ``size`` centers would leave at least, not standardized."""
        return best_possible(self.floor, self.nets)

    def header(self) -> dict[str, Any]:
        """Return what the header of the bank file keeps, JSON-able; distances are not standardized."""
        names = ("count", "shift", "sum", "squares")
        return {
            "size": self.size,
            "factor": self.factor,
            "spacing": self.spacing,
            "floor": self.floor,
            "nets": [{"vectors": len(net), "level": net.level, "growth": net.growth} for net in self.nets],
            "moments": None if self.moments is None else dict(zip(names, self.moments, strict=True)),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return what the bank file keeps as tensors, by name."""
        note = np.frombuffer(json.dumps(self.note).encode() + b"\n", np.uint8)
        kept = {_REACH: self.reach, _NOTE: torch.from_numpy(note.copy())}
        if self.nets:
            kept[_NETS] = torch.cat([net.vectors for net in self.nets]).cpu()
            kept[_ROWS] = torch.cat([net.rows for net in self.nets])
        return kept

    @classmethod
    def restore(cls, header: Manifest, tensors: Mapping[str, Tensor], shape: tuple[int, int], rows: int) -> StreamState:
        """Return what :meth:`header` and :meth:`tensors` made, of a bank (M, D) after a number of rows.

        Raises:
            FormatError: A value is missing or of another kind.
            InputError: A value is out of its range.
            KeyError: A tensor is missing.
            ValueError: They do not fit together.
        """
        size, factor = header.integer("size", shape[0]), header.number("factor")
        spacing, floor = header.number("spacing"), header.number("floor")
        if not (spacing >= 0 and floor >= 0 and factor >= LEAST_FACTOR):
            raise ValueError("a stream's distance is below 0, or its factor below the least")
        reach = tensors[_REACH]
        if (reach.dtype, reach.shape) != (torch.float64, shape[:1]) or not bool((reach >= 0).all()):
            raise ValueError("the stream's reaches are not those of its vectors")
        moments, text = header.optional_table("moments"), tensors[_NOTE].numpy().tobytes()
        note = parse_json(text, header.place, damaged="altered, its note cannot be read", largest=_LARGEST_NOTE)
        return cls(
            size, factor, spacing, floor, reach, _restore_nets(header, tensors, shape[1], size, rows),
            None if moments is None else _restore_moments(moments),
            as_table(note, "note"),
        )  # fmt: skip


def _restore_moments(table: Manifest) -> tuple[int, float, float, float]:
    return table.integer("count", 1), table.number("shift"), table.number("sum"), table.number("squares")


def _restore_nets(header: Manifest, tensors: Mapping[str, Tensor], dim: int, size: int, rows: int) -> tuple[Net, ...]:
    listed = header.tables("nets")
    if not listed:
        return ()
    sizes = [one.integer("vectors", 1) for one in listed]
    vectors, numbers = tensors[_NETS], tensors[_ROWS]
    if (vectors.dtype, vectors.shape) != (torch.float32, (sum(sizes), dim)) or max(sizes) > size:
        raise ValueError(f"the stream's nets are {vectors.dtype} {tuple(vectors.shape)}")
    if (numbers.dtype, numbers.shape) != (torch.int64, (sum(sizes),)):
        raise ValueError(f"the rows of the stream's nets are {numbers.dtype} {tuple(numbers.shape)}")
    if not 0 <= int(numbers.min()) <= int(numbers.max()) < rows:
        raise ValueError("the rows of the stream's nets are not of its sources")
    check_finite(vectors, _NETS)
    nets = []
    for one, own, places in zip(listed, vectors.split(sizes), numbers.split(sizes), strict=True):
        level, growth = one.number("level"), one.number("growth")
        if not (level > 0 and growth > 1):
            raise ValueError("a level or growth of the stream's nets is out of range")
        nets.append(Net(own.clone(), places.clone(), level, growth))
    return tuple(nets)
