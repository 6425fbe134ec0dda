"""Files of pictures, masks, depth images and clouds in the kinds that cameras and editors write, and damaged ones."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("tifffile")

import tifffile
from PIL import Image, ImageOps, features

from mmad_bank.data._deep import BITS_VARIABLE
from mmad_bank.data._images import read_depth, read_mask, read_rgb, read_tag, read_xyz
from mmad_bank.data._limits import MAX_PIXELS_VARIABLE
from mmad_bank.errors import InputError

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
POINTS = np.random.default_rng(1).uniform(0.1, 1, (24, 32, 3)).astype(np.float32)
TRUTH = np.zeros((24, 32), bool)
TRUTH[4:9, 10:20] = True


def png(width: int, height: int, depth: int, kind: int, raw: bytes) -> bytes:
    """A PNG whose header says what it is told to."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def png16(values: np.ndarray) -> bytes:
    """(H, W, C) uint16 as PNG: C is 1 grey, 2 with alpha, 3 colours, 4 with alpha."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    return png(
        values.shape[1], values.shape[0], 16, kind, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    )


def tiff(values: np.ndarray = POINTS, **options: Any) -> bytearray:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **{"photometric": "rgb", "metadata": None, **options})
    return bytearray(out.getvalue())


def with_tag(data: bytearray, code: int, value: int, count: int = 1) -> bytearray:
    """Change a tag's value in a little-endian TIFF, in place."""
    (at,) = struct.unpack_from("<I", data, 4)
    for i in range(struct.unpack_from("<H", data, at)[0]):
        entry = at + 2 + 12 * i
        if struct.unpack_from("<H", data, entry)[0] == code:
            struct.pack_into("<HHII", data, entry, code, 4, count, value)
            return data
    raise AssertionError(f"no tag {code}")


# Colour images.


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colours_are_read_where_they_use_their_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, alpha: bool
) -> None:
    """Not darkened, as 12 bits read as 16 would be, and not cut to the upper byte, where 12 bits have nothing."""
    path = tmp_path / f"a.{suffix}"

    def write(values: np.ndarray, opacity: int) -> None:
        values = np.dstack([values, np.full(values.shape[:2], opacity, np.uint16)]) if alpha else values
        extra = ["unassalpha"] if alpha else None
        path.write_bytes(png16(values) if suffix == "png" else tiff(values, extrasamples=extra))

    write(COLOURS.astype(np.uint16) * 257, 65535)
    assert np.abs(read_rgb(path).astype(int) - COLOURS).max() == 0
    write(COLOURS.astype(np.uint16) << 4, 65535)
    words = (
        r"a\.\w+: expected 16 bits per channel in use, found values up to 40.. of 65535, .*MMAD_BANK_PICTURE_BITS=12"
    )
    with pytest.raises(InputError, match=words):
        read_rgb(path)
    monkeypatch.setenv(BITS_VARIABLE, "12")
    if suffix == "tif":
        assert np.abs(read_rgb(path).astype(int) - COLOURS).max() <= 1
    else:  # Pillow reads upper bytes alone
        with pytest.raises(InputError, match=r"expected TIFF for colors of 12 bits in 16 .* found PNG"):
            read_rgb(path)
    monkeypatch.setenv(BITS_VARIABLE, "16")
    assert read_rgb(path).max() == 15 + (suffix == "tif")
    with pytest.raises(InputError, match="expected a mask of 8 bits per channel or grey, found 16"):
        read_mask(path)


def test_sixteen_bit_colours_of_a_tiff_lie_on_black_as_they_are_seen(tmp_path: Path) -> None:
    alpha = np.where(TRUTH, 65535, 0).astype(np.uint16)
    straight = np.dstack([COLOURS.astype(np.uint16) * 257, alpha])
    (tmp_path / "a.tif").write_bytes(tiff(straight, extrasamples=["unassalpha"]))
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), np.where(TRUTH[..., None], COLOURS, 0))
    (tmp_path / "a.tif").write_bytes(tiff(straight, extrasamples=["assocalpha"]))
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), COLOURS)
    (tmp_path / "a.tif").write_bytes(with_tag(tiff(straight[..., :3], extratags=[(274, 3, 1, 6, True)]), 274, 6))
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), np.rot90(COLOURS, -1))
    (tmp_path / "a.tif").write_bytes(tiff(straight, photometric="separated"))
    with pytest.raises(InputError, match=r"a\.tif: expected gray or RGB where channels have 16 bits, found SEPARATED"):
        read_rgb(tmp_path / "a.tif")


def test_sixteen_bit_greys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gray = COLOURS[..., :1]
    for name, data in (
        ("a.png", png16(gray.astype(np.uint16) * 257)),
        ("la.png", png16(COLOURS[..., [0, 0]].astype(np.uint16) * 257)),
    ):
        (tmp_path / name).write_bytes(data)
    Image.fromarray(gray[..., 0].astype(np.uint16) * 257).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        assert np.array_equal(read_rgb(tmp_path / name), np.repeat(gray, 3, axis=2)), name
    (tmp_path / "a.png").write_bytes(png16(gray.astype(np.uint16) << 4))
    with pytest.raises(InputError, match="found values up to 4080 of 65535"):
        read_rgb(tmp_path / "a.png")
    monkeypatch.setenv(BITS_VARIABLE, "12")
    assert np.abs(read_rgb(tmp_path / "a.png")[..., 0].astype(int) - gray[..., 0]).max() <= 1
    with pytest.raises(
        InputError, match=r"a\.tif: expected values up to 4095 \(MMAD_BANK_PICTURE_BITS=12\), found 65535"
    ):
        read_rgb(tmp_path / "a.tif")
    for text in ("8", "many", "17"):
        monkeypatch.setenv(BITS_VARIABLE, text)
        with pytest.raises(InputError, match="MMAD_BANK_PICTURE_BITS: expected a number of bits from 9 to 16"):
            read_rgb(tmp_path / "a.png")


def test_a_pgm_declares_its_range(tmp_path: Path) -> None:
    gray = COLOURS[..., 0]
    data = b"P5 32 24 4095\n" + (gray.astype(">u2") << 4).astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(data)
    assert np.abs(read_rgb(tmp_path / "a.pgm")[..., 1].astype(int) - gray).max() <= 1


def test_floats_go_from_0_to_1(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(COLOURS[..., 0].astype(np.float32) / 255).save(path)
    assert np.array_equal(read_rgb(path)[..., 2], COLOURS[..., 0])
    for wrong, words in (
        (POINTS[..., 0] * 2, "expected floats from 0 to 1, found 0.2"),
        (POINTS[..., 0] * np.nan, "nan"),
    ):
        Image.fromarray(wrong).save(path)
        with pytest.raises(InputError, match=words):
            read_rgb(path)
    Image.fromarray(COLOURS[..., 0].astype(np.int32)).save(path)
    with pytest.raises(InputError, match=r"expected 8 or 16 bits per channel, .* found 32-bit integers"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webp", {"lossless": True}), ("a.gif", {}), ("a.jp2", {}), ("a.ppm", {}), ("a.avif", {"quality": 100}),
        ("a.jfif", {"format": "JPEG", "quality": 100, "subsampling": 0}),
    ],
)  # fmt: skip
def test_other_formats_of_cameras_and_editors(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    smooth = np.add.outer(np.arange(24) * 4, np.arange(32) * 3)[..., None] + np.array([0, 20, 40])
    given = Image.fromarray(smooth.astype(np.uint8))
    kind = {"webp": "webp", "jp2": "jpg_2000", "avif": "avif"}.get(name[2:])
    if kind is not None and kind not in features.get_supported():
        pytest.skip(f"Pillow was built without {kind}")
    given.save(tmp_path / name, **options)
    exact = name in ("a.webp", "a.jp2", "a.ppm")
    most = np.abs(read_rgb(tmp_path / name).astype(int) - smooth).max()
    assert most == 0 if exact else most <= 8
    assert read_mask(tmp_path / name).shape == (24, 32)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_of_several_pictures_in_a_file_the_first_is_read_and_named(tmp_path: Path, name: str) -> None:
    first = Image.fromarray(np.full((24, 32, 3), 90, np.uint8))
    others = [Image.fromarray(np.full((24, 32, 3), 200, np.uint8))]
    first.save(tmp_path / name, save_all=True, append_images=others, **({"lossless": True} if name == "a.webp" else {}))
    with pytest.warns(UserWarning, match=rf"{name}: holds several pictures \(pages or frames\), of which the first"):
        assert np.abs(read_rgb(tmp_path / name).astype(int) - 90).max() <= 2


def test_a_telephones_preview_is_no_second_picture(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS)
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image.resize((8, 6))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_rgb(tmp_path / "a.jpg").shape == (24, 32, 3)


def test_what_no_reader_knows_is_one_line_with_what_they_know(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(
        InputError, match=r"a\.png: cannot be read as a picture \(PNG, JPEG, BMP, TIFF, WebP, GIF, JPEG"
    ):
        read_rgb(tmp_path / "a.png")


def test_pictures_of_all_modes_are_read_as_they_are_seen(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS)
    few = image.quantize(8)
    for name, given, seen in (
        ("grey.png", image.convert("L"), image.convert("L").convert("RGB")),
        ("bilevel.png", image.convert("1"), image.convert("1").convert("RGB")),
        ("bilevel.tif", image.convert("1"), image.convert("1").convert("RGB")),
        ("palette.png", few, few.convert("RGB")),
        ("palette.bmp", few, few.convert("RGB")),
        ("cmyk.tif", image.convert("CMYK"), image),
        ("ycbcr.tif", image.convert("YCbCr"), image.convert("YCbCr").convert("RGB")),
        ("capitals.TIFF", image, image),
    ):
        given.save(tmp_path / name, format={"IFF": "TIFF"}.get(name[-3:]))
        found = read_rgb(tmp_path / name)
        assert (found.dtype, found.shape) == (np.uint8, (24, 32, 3)), name
        assert np.array_equal(found, np.asarray(seen)), name


def test_transparent_parts_are_black_whatever_hides_there(tmp_path: Path) -> None:
    alpha = np.where(TRUTH, 255, 0).astype(np.uint8)
    alpha[0, 0] = 128
    shown = (COLOURS * (alpha[..., None] / 255)).round()
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        assert np.abs(read_rgb(tmp_path / name) - shown).max() <= 1
        assert np.array_equal(read_rgb(tmp_path / name)[TRUTH], COLOURS[TRUTH])
    grey = np.dstack([COLOURS[..., 0], alpha])
    Image.fromarray(grey).save(tmp_path / "la.png")
    assert np.array_equal(read_rgb(tmp_path / "la.png")[..., 1][TRUTH], COLOURS[..., 0][TRUTH])
    assert not read_rgb(tmp_path / "la.png")[~TRUTH][1:].any()
    keyed = Image.fromarray(np.where(TRUTH, 1, 0).astype(np.uint8)).convert("P")
    keyed.putpalette([90, 90, 90, 200, 100, 50])
    keyed.save(tmp_path / "key.png", transparency=0)
    assert np.array_equal(read_rgb(tmp_path / "key.png"), np.where(TRUTH[..., None], [200, 100, 50], 0))
    alpha[:] = 0
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "none.png")
    with pytest.raises(InputError, match="transparent all over"):
        read_rgb(tmp_path / "none.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_every_kind_of_file_is_turned_as_viewers_turn_it(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    options: dict[str, Any] = {"quality": 95} if suffix == "jpg" else {}
    path, mask = tmp_path / f"a.{suffix}", tmp_path / f"mask.{suffix}"
    Image.fromarray(COLOURS).save(path, exif=exif, **options)
    Image.fromarray(TRUTH.astype(np.uint8) * 255).save(mask, exif=exif, **options)
    plain = tmp_path / f"plain.{suffix}"
    Image.fromarray(COLOURS).save(plain, **options)
    turned = Image.open(plain)
    turned.getexif()[0x112] = orientation
    assert np.array_equal(read_rgb(path), np.asarray(ImageOps.exif_transpose(turned)))
    marked = Image.fromarray(TRUTH.astype(np.uint8))
    marked.getexif()[0x112] = orientation
    assert np.array_equal(read_mask(mask), np.asarray(ImageOps.exif_transpose(marked)) > 0)
    if suffix == "tif":
        whole = (POINTS[..., 0] * 60000).astype(np.uint16)
        Image.fromarray(whole).save(path, exif=exif)
        seen = Image.fromarray(whole.astype(np.int32))
        seen.getexif()[0x112] = orientation
        seen = np.asarray(ImageOps.exif_transpose(seen))
        assert np.array_equal(read_depth(path), seen)
        path.write_bytes(
            tiff(np.repeat(whole[..., None], 3, axis=2).astype(np.float32), extratags=[(274, 3, 1, orientation, True)])
        )
        assert np.array_equal(read_xyz(path)[..., 1], seen)


# Masks.


def palette(black: int, white: int) -> Image.Image:
    image = Image.fromarray(np.where(TRUTH, white, black).astype(np.uint8)).convert("P")
    colours = [77] * 768
    colours[3 * black : 3 * black + 3], colours[3 * white : 3 * white + 3] = [0] * 3, [255] * 3
    image.putpalette(colours)
    return image


GREY = Image.fromarray(TRUTH.astype(np.uint8) * 255)
MASKS: dict[str, Image.Image] = {
    "grey.png": GREY, "ones.png": Image.fromarray(TRUTH.astype(np.uint8)), "bilevel.png": GREY.convert("1"),
    "bilevel.tif": GREY.convert("1"), "colour.png": GREY.convert("RGB"), "colour.bmp": GREY.convert("RGB"),
    "alpha.png": GREY.convert("LA"), "alpha.tif": GREY.convert("RGBA"), "palette.png": palette(0, 1),
    "reversed.png": palette(1, 0), "reversed.bmp": palette(1, 0), "far.png": palette(5, 9),
    "quantized.png": GREY.convert("RGB").quantize(2), "ycbcr.tif": GREY.convert("YCbCr"),
    "cmyk.tif": GREY.convert("CMYK"),
    "deep.png": Image.fromarray(TRUTH.astype(np.uint16)), "deep.tif": Image.fromarray(TRUTH.astype(np.uint16) * 40000),
    "integers.tif": Image.fromarray(TRUTH.astype(np.int32) * -3),
    "floats.tif": Image.fromarray(TRUTH.astype(np.float32) / 8),
    "nan.tif": Image.fromarray(np.where(TRUTH, 1, np.nan).astype(np.float32)),
    "on nothing.png": Image.fromarray(np.dstack([np.full((24, 32, 3), 255, np.uint8), TRUTH.astype(np.uint8) * 255])),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_all_modes_mark_what_is_seen_as_not_black(tmp_path: Path, name: str) -> None:
    MASKS[name].save(tmp_path / name)
    found = read_mask(tmp_path / name)
    assert found.dtype == bool
    assert np.array_equal(found, TRUTH)


def test_black_of_a_jpeg_is_no_defect(tmp_path: Path) -> None:
    GREY.convert("RGB").save(tmp_path / "mask.jpg", quality=60)
    assert np.asarray(Image.open(tmp_path / "mask.jpg").convert("L"))[~TRUTH].any()  # ringing around the edge
    assert np.array_equal(read_mask(tmp_path / "mask.jpg"), TRUTH)


def test_deep_tiffs_whose_white_is_zero_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(TRUTH.astype(np.uint16), photometric="miniswhite"))
    for read in (read_mask, read_depth):
        with pytest.raises(InputError, match="expected a TIFF whose black is zero"):
            read(path)
    path.write_bytes(tiff(np.where(TRUTH, 0, 255).astype(np.uint8), photometric="miniswhite"))
    assert np.array_equal(read_mask(path), TRUTH)


# Depth images and clouds.


def test_depth_images_have_sixteen_bits(tmp_path: Path) -> None:
    values = (POINTS[..., 0] * 65535).astype(np.uint16)
    for name, image in (("a.png", values), ("b.tif", values), ("c.tif", values.astype(np.int32))):
        Image.fromarray(image).save(tmp_path / name)
        assert np.array_equal(read_depth(tmp_path / name), values)
    Image.fromarray(values.astype(np.int32) - 9000).save(tmp_path / "d.tif")
    with pytest.raises(InputError, match="expected 16 bits, 0 to 65535, found -"):
        read_depth(tmp_path / "d.tif")
    GREY.save(tmp_path / "e.png")
    with pytest.raises(InputError, match="expected a 16-bit grey image, found image mode L"):
        read_depth(tmp_path / "e.png")


@pytest.mark.parametrize(
    "data",
    [
        tiff(), tiff(rowsperstrip=5), tiff(tile=(16, 16)), tiff(bigtiff=True), tiff(byteorder=">"),
        tiff(compression="zlib"), tiff(compression="zlib", rowsperstrip=5), tiff(POINTS.astype(np.float64)),
        tiff(photometric="minisblack", metadata={}), tiff(photometric="minisblack", metadata={}, compression="zlib"),
        tiff(np.moveaxis(POINTS, -1, 0), planarconfig="separate"),
    ],
    ids=["strip", "strips", "tiles", "big", "endian", "zip", "zips", "double", "pages", "zip pages", "planes"],
)  # fmt: skip
def test_clouds_of_all_arrangements(tmp_path: Path, data: bytearray) -> None:
    (tmp_path / "a.tiff").write_bytes(data)
    found = read_xyz(tmp_path / "a.tiff")
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    assert np.array_equal(found, POINTS)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (tiff(POINTS.astype(np.float16)), None),
        (tiff((POINTS * 255).astype(np.uint8)), "expected H×W×3 floats, found .* uint8"),
        (tiff(POINTS[..., 0], photometric="minisblack"), r"found shape \(24, 32\)"),
        (tiff(np.dstack([POINTS, POINTS[..., :1]]), extrasamples=["unspecified"]), r"found shape \(24, 32, 4\)"),
        (tiff()[:2000], "truncated, expected 9,216 bytes of data, found a file of 2,000"),
        (with_tag(tiff(), 256, 0), "expected"),
        (with_tag(tiff(rowsperstrip=4), 278, 0), "cannot be read"),
        (with_tag(tiff(rowsperstrip=4), 278, 1), "truncated, expected 24 strips or tiles of data, found 6"),
        (with_tag(tiff(rowsperstrip=4), 257, 1_500_000), "expected a file of a size that fits its picture"),
        (with_tag(tiff(compression="zlib"), 257, 1_500_000), "expected a file of a size that fits its picture"),
        (with_tag(tiff(compression="zlib"), 257, 2**31), "expected at most 67,108,864 pixels"),
        (with_tag(tiff(), 259, 50000), "imagecodecs"),
        (with_tag(tiff(), 259, 34925), "expected no compression, deflate, .*, found LZMA"),
        (with_tag(tiff(), 259, 7), "found JPEG"),
        (with_tag(tiff(), 259, 1234), "found 1234"),
        (b"", "cannot be read"),
        (b"II*\0\x08\0\0\0", "cannot be read"),
        (b"not a picture", "cannot be read"),
    ],
)
def test_clouds_that_cannot_be_used_are_one_line_at_once(tmp_path: Path, data: bytes, line: str | None) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(data)
    if line is None:
        assert np.allclose(read_xyz(path), POINTS, atol=1e-3)
        return
    begin = time.perf_counter()
    with pytest.raises(InputError, match=rf"a\.tiff: .*{line}") as error:
        read_xyz(path)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - begin < 2
    assert isinstance(read_tag(path), str)


def test_a_strip_that_inflates_without_end_is_refused(tmp_path: Path, peak: Callable[..., int]) -> None:
    bomb = zlib.compress(bytes(2**26), 6)
    data = tiff(compression="zlib")
    at = len(data)
    data += bomb
    path = tmp_path / "a.tiff"
    path.write_bytes(with_tag(with_tag(data, 273, at), 279, len(bomb)))

    def read() -> None:
        with pytest.raises(InputError, match=r"a\.tiff: expected strips of 9,216 bytes, found one of more than"):
            read_xyz(path)

    assert peak(read) < 2**26


@pytest.fixture
def peak() -> Callable[..., int]:
    """Bytes that Python's allocator hands out at most during a call: zlib's and NumPy's buffers are among them."""
    import tracemalloc

    def measure(call: Callable[[], None]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


# Damage and limits.


@pytest.mark.parametrize(
    "data",
    [
        png(20_000, 20_000, 8, 2, bytes(100)),
        png(9_000, 9_000, 8, 0, bytes(100)),
        png(8_000, 8_000, 8, 2, bytes(100)),
        png(2**31 - 1, 2**31 - 1, 1, 0, bytes(100)),
    ],
    ids=["error", "warning", "growth", "all"],
)
def test_bombs_cost_their_header_only(tmp_path: Path, data: bytes, peak: Callable[..., int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)

    def read() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for reader in (read_rgb, read_mask, read_depth):
                with pytest.raises(InputError, match=r"a\.png: expected .*; set MMAD_BANK_MAX_PIXELS to read it"):
                    reader(path)

    assert peak(read) < 2**22


def test_the_limit_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "700")
    with pytest.raises(InputError, match="expected at most 700 pixels, found a header of 32×24 = 768"):
        read_rgb(path)
    (tmp_path / "a.tiff").write_bytes(tiff())
    with pytest.raises(InputError, match="expected at most 700 pixels"):
        read_xyz(tmp_path / "a.tiff")
    limit = Image.MAX_IMAGE_PIXELS
    for allowed in ("768", "0", " 100000000000 "):
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, allowed)
        assert read_rgb(path).shape == (24, 32, 3)
    path.write_bytes(png(20_000, 20_000, 1, 0, bytes(100)))
    with pytest.raises(InputError, match="cannot be read as a mask image"):  # not refused by its size any more
        read_mask(path)
    assert limit == Image.MAX_IMAGE_PIXELS
    for text in ("many", "-1", "1e6", "²"):
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, text)
        with pytest.raises(InputError, match="MMAD_BANK_MAX_PIXELS: expected a number of pixels, or 0 for no limit"):
            read_rgb(path)


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, RecursionError, zlib.error, NotImplementedError])
def test_whatever_a_decoder_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    (tmp_path / "a.tiff").write_bytes(tiff())

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    for call in (lambda: read_rgb(path), lambda: read_mask(path), lambda: read_xyz(tmp_path / "a.tiff")):
        with pytest.raises(InputError, match=rf"a\.\w+: cannot be read as .* \({error.__name__}\)"):
            call()


def test_a_picture_of_an_unread_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "000.heic").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"000\.png: file not found, only 000\.heic; expected a picture"):
        read_rgb(tmp_path / "000.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder\.png: found something that is no file"):
        read_rgb(tmp_path / "folder.png")
