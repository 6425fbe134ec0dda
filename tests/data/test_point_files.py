"""Files of points: what is read, and what is refused before it takes memory or the process with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmad_bank.data.point_files import read_points
from mmad_bank.errors import InputError

POINTS = np.random.default_rng(0).normal(size=(50, 3)) * 20
SINGLE = POINTS.astype(np.float32)
LITTLE = "binary_little_endian"


def pcd(
    data: bytes, kind: str, *, fields: str = "x y z", size: str = "4 4 4", types: str = "F F F", count: str = "1 1 1",
    points: object = 50, width: object = None, newline: str = "\n",
) -> bytes:  # fmt: skip
    lines = ("# .PCD v0.7", "VERSION 0.7", f"FIELDS {fields}", f"SIZE {size}", f"TYPE {types}", f"COUNT {count}",
             f"WIDTH {points if width is None else width}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {points}",
             f"DATA {kind}")  # fmt: skip
    return newline.join((*lines, "")).encode() + data


def ply(
    data: bytes, kind: str, *, number: object = 50, properties: str = "float x|float y|float z", first: str = ""
) -> bytes:
    lines = [
        "ply",
        f"format {kind} 1.0",
        "comment made up",
        *filter(None, first.split("|")),
        f"element vertex {number}",
    ]
    lines += [f"property {one}" for one in properties.split("|")]
    return (
        "\n".join((*lines, "element face 1", "property list uchar int vertex_indices", "end_header", "")).encode()
        + data
    )


def text(values: np.ndarray) -> bytes:
    return "".join(" ".join(f"{x:.6f}" for x in row) + "\n" for row in values).encode()


def with_more() -> bytes:
    """Points as doubles behind a color, and normals behind them."""
    rows = np.zeros(50, np.dtype([("rgb", "<u4"), ("p", "<f8", (3,)), ("n", "<f4", (3,))]))
    rows["p"] = POINTS
    return rows.tobytes()


MORE = {"fields": "rgb x y z n", "size": "4 8 8 8 4", "types": "U F F F F", "count": "1 1 1 1 3"}
PADDED = {"fields": "x y z _ _ _", "size": "4 4 4 4 4 4", "types": "F F F F F F", "count": "1 1 1 1 1 1"}
BEHIND = {"fields": "i n x y z", "size": "4 4 4 4 4", "types": "F F F F F", "count": "1 3 1 1 1"}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pcd", pcd(text(SINGLE), "ascii")),
        ("a.pcd", pcd(text(SINGLE), "ascii", newline="\r\n")),
        ("a.PCD", pcd(SINGLE.tobytes(), "binary")),
        ("a.pcd", pcd(SINGLE.tobytes() + b"more", "binary")),
        ("a.pcd", pcd(with_more(), "binary", **MORE)),
        ("a.pcd", pcd(np.hstack([SINGLE, SINGLE * 0]).tobytes(), "binary", **PADDED)),
        ("a.pcd", pcd(text(np.hstack([SINGLE[:, :1] * 0, SINGLE * 0, SINGLE])), "ascii", **BEHIND)),
        ("a.ply", ply(text(SINGLE) + b"3 0 1 2\n", "ascii")),
        ("a.ply", ply(SINGLE.tobytes() + b"\x03" + bytes(12), LITTLE)),
        ("a.ply", ply(SINGLE.astype(">f4").tobytes(), "binary_big_endian")),
        ("a.ply", ply(with_more(), LITTLE,
                      properties="uint rgb|double x|double y|double z|float32 nx|float32 ny|float32 nz")),
        ("a.ply", ply(b"7 8\n9 1\n" + text(SINGLE), "ascii", first="element odd 2|property int a|property int b")),
        ("a.ply", ply(bytes(16) + SINGLE.tobytes(), LITTLE, first="element odd 2|property double a")),
    ],
)  # fmt: skip
def test_text_and_binary_files_of_many_makers(tmp_path: Path, name: str, content: bytes) -> None:
    found = read_points(written(tmp_path / name, content))
    assert found.dtype == np.float64
    assert np.abs(found - POINTS).max() < 1e-5


def compressed(tmp_path: Path) -> bytes:
    open3d = pytest.importorskip("open3d")
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(POINTS))
    open3d.io.write_point_cloud(str(tmp_path / "z.pcd"), cloud, compressed=True)
    return (tmp_path / "z.pcd").read_bytes()


def test_compressed_files(tmp_path: Path) -> None:
    content = compressed(tmp_path)
    assert np.abs(read_points(tmp_path / "z.pcd") - POINTS).max() < 1e-5
    begin = content.index(b"binary_compressed\n") + 18
    stored = content[begin : begin + 4]
    for bad, message in (
        (content[:-20], "truncated, expected 50 points of 12 bytes"),
        (content[:begin], "truncated"),
        (re.sub(rb"(WIDTH|POINTS) 50", rb"\1 5000", content), r"become 60,000 bytes, found .* 600"),
        (content[:begin] + stored + b"\0\0\0\x80" + content[begin + 8 :], "that become 2,147,483,648"),
        (content[: begin + 8] + bytes(len(content) - begin - 8), "expected 50 points in compressed data, found 0"),
    ):
        with pytest.raises(InputError, match=message):
            read_points(written(tmp_path / "bad.pcd", bad))
    long = content.replace(b"VERSION", b"# " + b"x" * 2000 + b"\nVERSION")  # longer than Open3D's lines
    assert np.abs(read_points(written(tmp_path / "long.pcd", long)) - POINTS).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pcd", b"", "expected a PCD or PLY file, found an empty one"),
        ("a.pcd", b"\x89PNG\r\n", "found something else"),
        ("a.ply", b"ply\nformat ascii 1.0\n", "found no end of it"),
        ("a.pcd", pcd(b"", "binary", points=10**12), "expected at most 16,777,216 points, found a header of 1,"),
        ("a.pcd", pcd(b"", "binary", points=10**30), "expected a whole number as WIDTH, found '1000"),
        ("a.pcd", pcd(SINGLE.tobytes()[:-1], "binary"), "truncated, expected 50 points of 12 bytes, found 599"),
        ("a.pcd", pcd(text(SINGLE[:40]), "ascii"), "truncated, expected 50 points, found 40"),
        ("a.pcd", pcd(b"1 2 3\n", "ascii", points=1000), "truncated, expected 1,000 points"),
        ("a.pcd", pcd(b"1.000 2.000\n" * 50, "ascii"), "cannot be read as a point cloud"),
        ("a.pcd", pcd(b"a b c\n" * 50, "ascii"), "cannot be read as a point cloud"),
        ("a.pcd", pcd(b"", "ascii", points=0), "expected points, found none"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", points="-3"), "expected a whole number as WIDTH, found '-3'"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", width=7), "expected WIDTH times HEIGHT points, 7 times 1, found 50"),
        ("a.pcd", pcd(SINGLE.tobytes(), "zip"), "expected DATA ascii, binary or binary_compressed, found 'zip'"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", fields="x y w"), "expected the fields x, y and z, found x, y, w"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", fields="x x z"), "expected fields of numbers, each of its own name"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", types="F F S"), "expected fields of numbers"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", size="4 4 4,i4"), "expected fields of numbers"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", size="4 4"), "expected as many of FIELDS, SIZE, TYPE and COUNT"),
        ("a.pcd", pcd(SINGLE.tobytes(), "binary", count="1 1 99999999"), "expected a whole number as COUNT"),
        ("a.ply", ply(SINGLE.tobytes()[:-1], LITTLE), "truncated"),
        ("a.ply", ply(SINGLE.tobytes(), "binary"), "expected the format ascii or binary, found 'binary'"),
        ("a.ply", ply(SINGLE.tobytes(), LITTLE, number=10**12), "expected at most 16,777,216 points"),
        ("a.ply", ply(SINGLE.tobytes(), LITTLE, first="element odd 9999999|property double a"), "truncated"),
        ("a.ply", ply(b"", "ascii", properties="list uchar int x"), "expected plain numbers as properties of vertex"),
        ("a.ply", ply(b"", "ascii", properties="float x|float y"), "expected the fields x, y and z"),
        ("a.ply", b"ply\nformat ascii 1.0\nend_header\n", "expected an element 'vertex', found none"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_points(written(tmp_path / name, content))
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.pcd: file not found; expected a point cloud"):
        read_points(tmp_path / "a.pcd")


def test_the_environment_sets_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.pcd", pcd(SINGLE.tobytes(), "binary"))
    monkeypatch.setenv("MMAD_BANK_MAX_PIXELS", "49")
    with pytest.raises(InputError, match="expected at most 49 points, found a header of 50; set MMAD_BANK_MAX_PIXELS"):
        read_points(path)
    monkeypatch.setenv("MMAD_BANK_MAX_PIXELS", "0")
    assert len(read_points(path)) == 50


MUTANTS = """
import random, resource, sys
from pathlib import Path
from mmad_bank.data.point_files import read_points
from mmad_bank.errors import InputError
folder = Path(sys.argv[1])
seeds = [path.read_bytes() for path in sorted(folder.glob("seed*"))]
rng, refused = random.Random(7), 0
if any(b"compressed" in seed for seed in seeds):
    import open3d
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(int(sys.argv[2])):
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(min(len(data), rng.choice((300, 300, len(data)))))
        kind = rng.random()
        if kind < 0.5:
            data[place] = rng.choice(b"0123456789 -xyzFIU\\n\\0\\xff")
        elif kind < 0.75:
            del data[place : place + rng.choice((1, 4, 40))]
        else:
            data[place:place] = bytes(rng.choices(b"0123456789 \\n", k=rng.choice((1, 8, 30))))
        data = data or bytearray(b"#")
    path = folder / "mutant.pcd"
    path.write_bytes(data)
    try:
        read_points(path)
    except InputError:
        refused += 1
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(refused, grown)
"""


def test_mutants_neither_crash_nor_grow(tmp_path: Path) -> None:
    """In a process of its own: what a decoder in C++ does to the process would be seen."""
    seeds = [pcd(text(SINGLE), "ascii"), pcd(SINGLE.tobytes(), "binary"), ply(SINGLE.tobytes(), LITTLE),
             ply(text(SINGLE), "ascii"), compressed(tmp_path)]  # fmt: skip
    for number, seed in enumerate(seeds):
        (tmp_path / f"seed{number}").write_bytes(seed)
    found = subprocess.run(
        [sys.executable, "-c", MUTANTS, str(tmp_path), "600"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    refused, grown = map(int, re.findall(r"\d+", found.stdout.splitlines()[-1]))
    assert 100 < refused < 600
    assert grown < 200_000  # KiB: a header of a few digits more would announce gigabytes
