"""Small fitted methods for the tests of the service, and requests with files."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from data_trees import add_picture, add_sample, scene
from running_service import Reply, Service

from mmad_bank.methods import PatchCore

SMALL = {
    "rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "image_size": 64, "grid": (8, 8),
    "ratio": 0.2,
}  # fmt: skip


def save_picture_model(folder: Path) -> Path:
    """Fit a calibrated PatchCore on pictures alone; return the folder of the pictures."""
    pictures = folder.parent / f"{folder.name}-pictures"
    for number in range(12):
        add_picture(pictures / f"{number}.png", seed=number)
    files = sorted(pictures.glob("*.png"), key=lambda path: int(path.stem))
    PatchCore(**SMALL, calibration="folds", calibration_folds=3).fit(files).save(folder)
    return pictures


def save_depth_model(folder: Path) -> Path:
    """Fit a PatchCore whose samples need point clouds; return the folder of its data set."""
    from mmad_bank.data import open_dataset

    data = folder.parent / f"{folder.name}-data"
    for number in range(3):
        add_sample(data / "part" / "train" / "good", f"{number:03d}", xyz=scene(seed=number))
    PatchCore(**SMALL, calibration="none").fit(open_dataset(data, "part", "train")).save(folder)
    return data


def form(**files: tuple[str, bytes]) -> tuple[bytes, str]:
    """Return a body of a form with files, each with its name, and its type."""
    border = uuid.uuid4().hex
    parts = b"".join(
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"; filename="{shown}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, (shown, content) in files.items()
    )
    return parts + f"--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"


def send(
    service: Service, model: str, query: str = "", accept: str = "*/*", **files: Path | tuple[str, bytes]
) -> Reply:
    """Send files to the door of pictures."""
    given = {name: (one.name, one.read_bytes()) if isinstance(one, Path) else one for name, one in files.items()}
    body, kind = form(**given)
    return service.ask("POST", f"/predict/{model}{query}", body, Content_Type=kind, Accept=accept)


def decoded(png: bytes) -> np.ndarray:
    """Return a picture's values."""
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))


def as_json(value: Any) -> Any:
    """Return what JSON makes of a value."""
    return json.loads(json.dumps(value))
