"""Decision layer fusion (M3DM, section 3.4): one score from several banks' scores, for the image and for each pixel."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_index
from mmad_bank._internal.files import replacing
from mmad_bank._internal.tensor_files import write_tensors
from mmad_bank.errors import FormatError, InputError, MissingExtraError

FACTORS = {"xyz": 1.0, "rgb": 0.1, "fusion": 1.0}
"""Factors that each bank's scores are multiplied by first (published code)."""

Scores = Mapping[str, ArrayLike]

_FORMAT = "mmad-bank decision fusion"


class DivergedError(InputError):
    """Numbers overflowed in the training; the message begins with the argument's name."""


class DecisionFusion:
    """DLF: two linear one-class SVMs, D_a on images' scores (eq. 4) and D_s on pixels' scores (eq. 5).

    A linear one-class SVM finds the direction w in which normal data lie farthest from the origin: the fused score is
    w · (factors · scores). Fitted by scikit-learn's SGDOneClassSVM, applied in PyTorch. Normal scores are positive, and
    so are their weights; still, the direction is checked on normal data: where every bank's score rises by its standard
    deviation the fused one must rise, or the direction is turned round.

    Args:
        factors: One factor for each bank; its names and their order are the banks that are fused.
        nu: Bound on the part of the training data on the wrong side (scikit-learn's ``nu``).
        max_iter: Largest number of passes over the training data.
        learning_rate: None for scikit-learn's decreasing schedule, as in the published code, or a constant (M3DM's
            paper: 1e-4).
        max_pixels: Largest number of pixels to train D_s on; of more, so many are drawn at random.
        seed: Seed of the draw and of the SVMs.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> normal = {name: 1 + 0.1 * torch.rand(30, generator=generator) for name in ("xyz", "rgb")}
        >>> fusion = DecisionFusion({"xyz": 1.0, "rgb": 0.1}).fit(normal, normal)
        >>> fused = fusion.fuse_images({"xyz": torch.tensor([1.0, 2.0]), "rgb": torch.tensor([1.0, 1.5])})
        >>> bool(fused[1] > fused[0])
        True
    """

    def __init__(
        self,
        factors: Mapping[str, float] | None = None,
        *,
        nu: float = 0.5,
        max_iter: int = 1000,
        learning_rate: float | None = None,
        max_pixels: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        self.factors = dict(FACTORS if factors is None else factors)
        self.nu, self.max_iter, self.learning_rate = nu, max_iter, learning_rate
        self.max_pixels, self.seed = max_pixels, seed
        if not self.factors or not all(0 < factor < math.inf for factor in self.factors.values()):
            raise InputError(f"factors: expected positive numbers by bank, found {self.factors}")
        if not 0 < nu <= 1:
            raise InputError(f"nu: expected a number above 0 and up to 1, found {nu!r}")
        if learning_rate is not None and not 0 < learning_rate < math.inf:
            raise InputError(f"learning_rate: expected a positive number or None, found {learning_rate!r}")
        check_index(max_iter, "max_iter", 1, 2**31 - 1, "passes over the data")
        check_index(max_pixels, "max_pixels", 1, 2**31 - 1, "training needs a pixel")
        check_index(seed, "seed", 0, 2**32 - 1, "scikit-learn's range")
        self.weights_: dict[str, Tensor] = {}
        self.offsets_: dict[str, float] = {}

    def fit(self, images: Scores, pixels: Scores, *, held_out: tuple[Scores, Scores] | None = None) -> DecisionFusion:
        """Fit both SVMs on the scores of normal training images.

        Args:
            images: Image scores (n,), by bank.
            pixels: Pixel scores by bank, of any shape, the same for all banks: maps (n, H, W), or what is left of them.
            held_out: Images and pixels of normal data kept out of training, such as a validation split, on which the
                directions are checked; None takes the training data.

        Raises:
            InputError: A bank is missing or unknown, shapes differ, or a score is not finite.
            MissingExtraError: scikit-learn is not installed.
        """
        for i, (name, scores) in enumerate((("images", images), ("pixels", pixels))):
            table = self._table(scores, name).reshape(-1, len(self.factors))
            checked = table if held_out is None else self._table(held_out[i], f"held_out {name}").flatten(0, -2)
            weights, offset = self._fit_one(self._drawn(table))
            self.weights_[name], self.offsets_[name] = _oriented(weights, self._scaled(checked).cpu()), offset
        return self

    def fuse_images(self, scores: Scores) -> Tensor:
        """Fuse image scores (n,), by bank, to (n,) float32; larger is more anomalous."""
        return self._fuse(scores, "images")

    def fuse_pixels(self, scores: Scores) -> Tensor:
        """Fuse anomaly maps by bank, (n, H, W) or any one shape, to that shape in float32; larger is more anomalous."""
        return self._fuse(scores, "pixels")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            InputError: Nothing is fitted, or the file cannot be written.
        """
        self._check_fitted()
        names = ("nu", "max_iter", "learning_rate", "max_pixels", "seed")
        header = {"format": _FORMAT, "factors": self.factors, **{name: getattr(self, name) for name in names}}
        tensors = {f"{name}.coef": weights for name, weights in self.weights_.items()}
        tensors |= {f"{name}.offset": torch.tensor([x], dtype=torch.float64) for name, x in self.offsets_.items()}
        with replacing(path) as partial:
            write_tensors(partial, tensors, {"mmad_bank": json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DecisionFusion:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: There is no such file.
            FormatError: It is another file, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["mmad_bank"])
                if header.pop("format") != _FORMAT:
                    raise KeyError("format")
                fusion = cls(header.pop("factors"), **header)
                for name in ("images", "pixels"):
                    fusion.weights_[name] = file.get_tensor(f"{name}.coef")
                    fusion.offsets_[name] = float(file.get_tensor(f"{name}.offset"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path}: not a saved decision fusion, or a damaged one") from error
        return fusion

    def _table(self, scores: Scores, name: str) -> Tensor:
        """Put the banks' scores side by side: (..., banks), float32, before the factors."""
        if set(scores) != set(self.factors):
            found = ", ".join(scores) or "none"
            raise InputError(f"{name}: expected scores of {', '.join(self.factors)}, found {found}")
        columns = [as_float_tensor(scores[bank], f"{name}[{bank!r}]", ndim=tuple(range(1, 9))) for bank in self.factors]
        for bank, column in zip(self.factors, columns, strict=True):
            if column.shape != columns[0].shape:
                raise InputError(
                    f"{name}[{bank!r}]: expected shape {tuple(columns[0].shape)} as of the other banks,"
                    f" found {tuple(column.shape)}"
                )
            if not bool(torch.isfinite(column).all()):
                raise InputError(f"{name}[{bank!r}]: expected finite scores, found NaN or infinity")
        return torch.stack(columns, dim=-1)

    def _scaled(self, table: Tensor) -> Tensor:
        return table.double() * torch.tensor(list(self.factors.values()), dtype=torch.float64, device=table.device)

    def _drawn(self, table: Tensor) -> Tensor:
        """Return the factors times at most ``max_pixels`` rows, drawn without repetition, in their order."""
        if len(table) > self.max_pixels:
            rows = np.random.default_rng(self.seed).choice(len(table), self.max_pixels, replace=False)
            table = table[torch.from_numpy(np.sort(rows)).to(table.device)]
        return self._scaled(table).cpu()

    def _fit_one(self, rows: Tensor) -> tuple[Tensor, float]:
        try:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.linear_model import SGDOneClassSVM
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "multimodal", "decision layer fusion") from error
        if len(rows) == 0:
            raise InputError("images, pixels: expected scores of at least one, found none")
        rule: dict[str, Any] = {}
        if self.learning_rate is not None:
            rule = {"learning_rate": "constant", "eta0": self.learning_rate}
        svm = SGDOneClassSVM(nu=self.nu, max_iter=self.max_iter, random_state=self.seed, **rule)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # ``max_iter`` is the paper's number of steps
            try:
                svm.fit(rows.numpy())
            except ValueError as error:
                found = "scikit-learn's own" if self.learning_rate is None else f"{self.learning_rate:g}"
                raise DivergedError(f"learning_rate: DLF diverged; expected a smaller one, found {found}") from error
        return torch.from_numpy(np.array(svm.coef_, dtype=np.float64)), float(svm.offset_[0])

    def _fuse(self, scores: Scores, name: str) -> Tensor:
        self._check_fitted()
        table = self._scaled(self._table(scores, name))
        return (table @ self.weights_[name].to(table.device)).float()

    def _check_fitted(self) -> None:
        if not self.weights_:
            raise InputError("DecisionFusion: not fitted; call fit or load first")


def _oriented(weights: Tensor, table: Tensor) -> Tensor:
    """Turn the direction round if the fused score would fall where every bank's score rises.

    Each bank rises by its own standard deviation over normal data, so that the loudest bank does not decide alone. How
    the banks' scores vary together does not come in: a few held-out images would not tell. Where the scores do not vary
    at all, the weights' own sign decides.
    """
    rise = float(weights @ table.std(0, correction=0))
    if rise == 0:
        rise = float(weights.sum())
    return -weights if rise < 0 else weights
