"""Tiny data sets on disk, for the tests of readers and preparation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def scene(height: int = 60, width: int = 60, *, tilt: float = 0.05, seed: int = 0) -> np.ndarray:
    """A tilted plane 0.4 m away with a box of 15 mm on it, one pixel per millimetre: (H, W, 3), float32."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:height, :width] - (np.array([height, width])[:, None, None] - 1) / 2) / 1000
    z = 0.4 + tilt * x + rng.normal(0, 2e-4, x.shape)
    top, left = height // 2 - 8, width // 2 - 8
    z[top : top + 16, left : left + 16] -= 0.015
    return np.stack([x, y, z], axis=-1).astype(np.float32)


def add_sample(
    folder: Path, name: str = "000", *, xyz: np.ndarray | None = None, rgb: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Write a sample into CATEGORY/SPLIT/DEFECT."""
    xyz = scene() if xyz is None else xyz
    if rgb is None:
        rgb = np.random.default_rng(int(name)).integers(1, 256, (*xyz.shape[:2], 3), dtype=np.uint8)
    for part in ("rgb", "xyz", *(("gt",) if mask is not None else ())):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(folder / "rgb" / f"{name}.png")
    tifffile.imwrite(folder / "xyz" / f"{name}.tiff", xyz, photometric="rgb")
    if mask is not None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "gt" / f"{name}.png")


def add_eyecandy(
    folder: Path, name: str, depth: np.ndarray, *, pose: np.ndarray | None = None, anomalous: str | None = None,
    mask: np.ndarray | None = None, low: float = 0.5, high: float = 1.5,
) -> None:  # fmt: skip
    """Write a sample into CATEGORY/SPLIT/data; depth in metres."""
    folder.mkdir(parents=True, exist_ok=True)
    code = np.round((depth - low) / (high - low) * 65535).astype(np.uint16)
    Image.fromarray(code).save(folder / f"{name}_depth.png")
    for light in range(6):
        rgb = np.full((*depth.shape, 3), 40 * light, dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{name}_image_{light}.png")
    (folder / f"{name}_info_depth.yaml").write_text(f"normalization:\n  max: {high}\n  min: {low}\n")
    (folder / f"{name}_metadata.yaml").write_text(anomalous or "anomalous: 0\n")
    np.savetxt(folder / f"{name}_pose.txt", np.eye(4) if pose is None else pose)
    if mask is not None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}_mask.png")


def add_picture(path: Path, *, size: tuple[int, int] = (48, 64), seed: int | None = None, spot: bool = False) -> None:
    """Write a color picture of soft noise, perhaps with the bright spot that :func:`add_mask` marks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.stem)) if seed is None else seed
    rgb = np.random.default_rng(seed).integers(90, 130, (*size, 3), dtype=np.uint8)
    if spot:
        rgb[12:20, 16:32] = 255
    Image.fromarray(rgb).save(path)


def add_mask(path: Path, value: int = 255, *, size: tuple[int, int] = (48, 64), palette: bool = False) -> None:
    """Write a mask with 8×16 pixels of a value, or of an index into a palette whose colors are all black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, dtype=np.uint8)
    mask[12:20, 16:32] = value
    image = Image.fromarray(mask)
    if palette:
        image.putpalette([0] * 768)
    image.save(path)


def add_mvtec_ad(category: Path, *, train: int = 4, test: int = 2, defect: str = "broken") -> None:
    """Write a category in MVTec AD's layout: good pictures to learn from, good ones and a defect to test with."""
    for number in range(train):
        add_picture(category / "train" / "good" / f"{number:03d}.png")
    for number in range(test):
        add_picture(category / "test" / "good" / f"{number:03d}.png", seed=50 + number)
        add_picture(category / "test" / defect / f"{number:03d}.png", seed=90 + number, spot=True)
        add_mask(category / "ground_truth" / defect / f"{number:03d}_mask.png")


def add_visa(root: Path, category: str = "candle", *, train: int = 4, test: int = 2) -> None:
    """Write a category of VisA as it is downloaded, and add its rows to the table of the splits."""
    table = root / "split_csv" / "1cls.csv"
    rows, kinds = [] if table.is_file() else ["object,split,label,image,mask"], ["image,label,mask"]
    for number in range(train + test):
        name = f"{category}/Data/Images/Normal/{number:04d}.JPG"
        add_picture(root / name)
        rows.append(f"{category},{'train' if number < train else 'test'},normal,{name},")
        kinds.append(f"{name},normal,")
    for number in range(test):
        name, mask = (f"{category}/Data/{kind}/Anomaly/{number:03d}" for kind in ("Images", "Masks"))
        add_picture(root / f"{name}.JPG", spot=True)
        add_mask(root / f"{mask}.png", value=number + 1)
        rows.append(f"{category},test,anomaly,{name}.JPG,{mask}.png")
        kinds.append(f'{name}.JPG,"chunk of wax missing, weird/odd wick",{mask}.png')
    (root / category / "image_anno.csv").write_text("\n".join(kinds) + "\n")
    table.parent.mkdir(exist_ok=True)
    with table.open("a") as file:
        file.write("\n".join(rows) + "\n")


def shell(n: int = 3000, *, whole: bool = False, bump: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The upper half of an ellipsoid of 30×20×8 mm, or all of it, perhaps with a bump on it.

    Returns:
        Points (N, 3), in mm, in some pose, and which of them are the bump's (N,).
    """
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3))
    points /= np.linalg.norm(points, axis=1)[:, None]
    if not whole:
        points[:, 2] = np.abs(points[:, 2])
    points *= (15, 10, 4)
    marked = (np.hypot(points[:, 0] - 6, points[:, 1] - 2) < 2.5) & (points[:, 2] > 0) & bump
    points[marked, 2] += 1.2
    pose, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose *= np.sign(np.linalg.det(pose))
    return points @ pose + (3, -7, 40), marked


def write_pcd(path: Path, points: np.ndarray, kind: str = "binary") -> None:
    """Write points (N, 3) as float32 into a PCD file, text or binary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {kind}\n"
    )
    values = points.astype(np.float32)
    text = "".join(f"{x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in values)
    path.write_bytes(header.encode() + (values.tobytes() if kind == "binary" else text.encode()))


def add_real3d(category: Path, *, train: int = 2, test: int = 2, n: int = 3000) -> None:
    """Write a category in Real3D-AD's layout: whole parts to learn from, halves with and without a bump to test."""
    for number in range(train):
        write_pcd(category / "train" / f"{number}_template.pcd", shell(2 * n, whole=True, seed=number)[0])
    for number in range(test):
        write_pcd(category / "test" / f"{number}_good.pcd", shell(n, seed=20 + number)[0])
        points, marked = shell(n, bump=True, seed=40 + number)
        write_pcd(category / "test" / f"{number}_bulge_cut.pcd", points)
        truth = category / "gt" / f"{number}_bulge_cut.txt"
        truth.parent.mkdir(exist_ok=True)
        np.savetxt(truth, np.column_stack([points, marked]), fmt="%.5f")
