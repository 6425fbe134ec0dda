"""Damage to files: of any bytes, and of bytes whose format is known, with lengths and checksums made right again.

A mutator takes a random generator and a file's content, and returns another content.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from mmad_bank._internal.checksum import checksum

Mutator = Callable[[random.Random, bytes], bytes]

_EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    7,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53,
    2**63,
    -(2**63),
    2**64,
    10**30,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "x" * 5000,
    "\0",
    "\ud800",
    "1e999",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [0, 0],
    [1e308] * 3,
)


class Payload:
    """A pickle that makes a file when it is loaded by somebody who runs code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


# Any bytes.


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0", b"\xff", data[:64], data)) * rng.choice((1, 1, 3, 100))


def splice(rng: random.Random, data: bytes) -> bytes:
    """Copy a block over another place, insert it there, or take it out."""
    length = rng.choice((1, 2, 4, 8, 16, 64, 512))
    start, place = (rng.randrange(len(data) + 1) for _ in range(2))
    block = data[start : start + length]
    how = rng.randrange(3)
    if how == 0:
        return data[:place] + block + data[place + len(block) :]
    return data[:place] + block + data[place:] if how == 1 else data[:start] + data[start + length :]


def set_number(rng: random.Random, data: bytes) -> bytes:
    """Put an extreme number over 1 to 8 bytes, mostly near the beginning, where headers are."""
    width = rng.choice((1, 2, 4, 8))
    end = len(data) - width
    if end < 0:
        return data
    place = rng.randint(0, min(end, 256) if rng.random() < 0.5 else end)
    number = rng.choice(_EXTREMES) & ((1 << 8 * width) - 1)
    return data[:place] + number.to_bytes(width, rng.choice(("little", "big"))) + data[place + width :]


def blank(rng: random.Random, data: bytes) -> bytes:
    """Fill a block with one value."""
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 32, 256))
    block = data[start : start + length]
    return data[:start] + rng.choice((b"\0", b"\xff", b"\x80", b" ")) * len(block) + data[start + len(block) :]


ANY: tuple[Mutator, ...] = (flip_bits, flip_bits, truncate, extend, splice, splice, set_number, set_number, blank)


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    """Apply one general mutator, now and then several."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(ANY)(rng, data)
    return data


# JSON and other text.


def change_value(rng: random.Random, value: Any) -> Any:
    """Change one value somewhere in nested lists and dictionaries: another type, an extreme, gone, or twice."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        how = rng.random()
        result = dict(value) if isinstance(value, dict) else list(value)
        if how < 0.08:
            del result[key]
        elif how < 0.12 and isinstance(result, dict):
            result[rng.choice(("", "x", "../x", f"{key} "))] = result[key]
        elif how < 0.12:
            result.append(result[key])
        else:
            result[key] = change_value(rng, value[key])
        return result
    how = rng.random()
    if how < 0.1:
        return [value]
    if how < 0.2:
        return {"a": value}
    if how < 0.3:
        return str(value)
    if isinstance(value, (int, float)) and how < 0.4:
        return -value if rng.random() < 0.5 else value * rng.choice((2, 10, 1000, 1.5))
    return rng.choice(_NUMBERS if how < 0.75 else _VALUES)


def json_text(rng: random.Random, data: bytes) -> bytes:
    """Change a value of a JSON document, or its text."""
    how = rng.random()
    if how < 0.04:
        deep = rng.choice((500, 5_000, 100_000))
        return b"[" * deep + b"]" * rng.choice((0, deep))
    if how < 0.08:
        return data.replace(b": ", b": " + b'{"a": ' * 3000, 1)
    if how < 0.12:
        return re.sub(rb"\d+(?![\d.])", lambda match: b"9" * rng.choice((20, 400, 5000)), data, count=1)
    if how < 0.25:
        return any_bytes(rng, data)
    try:
        return json.dumps(change_value(rng, json.loads(data)), indent=rng.choice((None, 2))).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):
        return any_bytes(rng, data)


def words(rng: random.Random, data: bytes) -> bytes:
    """Put something else for a number or word of a text."""
    tokens = re.split(rb"([^\s:,{}]+)", data)
    if len(tokens) < 2:
        return any_bytes(rng, data)
    place = rng.randrange(1, len(tokens), 2)
    tokens[place] = rng.choice(
        (
            b"",
            b"0",
            b"-1",
            b"nan",
            b"inf",
            b"-inf",
            b"1e999",
            b"1e-999",
            b"9" * 5000,
            b"0x10",
            b"1_0",
            b"\xff\xfe",
            b"[" * 3000,
            b'!!python/object/apply:os.system ["touch ran"]',
            b"&a [*a, *a]",
            b"'",
            b'"',
            "½".encode(),
            b"\0",
        )
    )
    return b"".join(tokens)


# safetensors, and the bank's header within it.


def _split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join_safetensors(table: bytes, payload: bytes) -> bytes:
    table += b" " * (-len(table) % 8)
    return struct.pack("<Q", len(table)) + table + payload


def safetensors_table(rng: random.Random, data: bytes) -> bytes:
    """Change the table of tensors; its length is made right."""
    length = int.from_bytes(data[:8], "little")
    return _join_safetensors(json_text(rng, data[8 : 8 + length]), data[8 + length :])


def safetensors_values(rng: random.Random, data: bytes) -> bytes:
    """Change values of tensors; the file stays valid, so that what reads them must say what is wrong."""
    length = int.from_bytes(data[:8], "little")
    payload = bytearray(data[8 + length :])
    for _ in range(rng.choice((1, 4, 100))):
        if len(payload) >= 8:
            place = rng.randrange(0, len(payload) - 7, 4)
            payload[place : place + 4] = rng.choice(
                (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\0", b"\xff" * 4, rng.randbytes(4))
            )
    return data[: 8 + length] + bytes(payload)


_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def bank_header(rng: random.Random, data: bytes) -> bytes:
    """Change the bank's JSON header and make its checksum right."""
    table, payload = _split_safetensors(data)
    header = json.loads(table["__metadata__"]["mmad_bank"])
    header.pop("checksum", None)
    if rng.random() < 0.05:
        text = json_text(rng, json.dumps(header).encode()).decode("utf-8", "replace")
    else:
        header = change_value(rng, header)
        if isinstance(header, dict):
            header["checksum"] = _header_checksum(header)
        text = json.dumps(header)
    table["__metadata__"]["mmad_bank"] = text
    return _join_safetensors(json.dumps(table).encode(), payload)


def model_manifest(rng: random.Random, data: bytes) -> bytes:
    """Change a value of a model's manifest and make its checksum right."""
    content = change_value(rng, json.loads(data))
    if isinstance(content, dict):
        rest = {name: value for name, value in content.items() if name != "checksum"}
        content["checksum"] = _header_checksum(rest)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def bank_tensors(rng: random.Random, data: bytes) -> bytes:
    """Change values, and sometimes shapes and dtypes, of a bank's tensors; all checksums are made right."""
    import numpy as np

    data = safetensors_values(rng, data)
    table, payload = _split_safetensors(data)
    header = json.loads(table["__metadata__"]["mmad_bank"])
    header.pop("checksum", None)
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        if rng.random() < 0.3:
            _reshape(rng, entry, header["tensors"][name])
        first, last = entry["data_offsets"]
        header["tensors"][name]["checksum"] = checksum(np.frombuffer(payload[first:last], np.uint8))
    header["checksum"] = _header_checksum(header)
    table["__metadata__"]["mmad_bank"] = json.dumps(header)
    return _join_safetensors(json.dumps(table).encode(), payload)


def _reshape(rng: random.Random, entry: dict[str, Any], listed: dict[str, Any]) -> None:
    """Give a tensor's bytes another shape or dtype of the same size, in the table and in the bank's header."""
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    names = {
        "F32": "float32",
        "F16": "float16",
        "I64": "int64",
        "U8": "uint8",
        "F64": "float64",
        "I32": "int32",
        "BF16": "bfloat16",
    }
    kind = rng.choice([kind for kind in names if size % _SIZES[kind] == 0])
    count = size // _SIZES[kind]
    sides = [side for side in (1, 2, 3, 4, 5, 8) if count % side == 0]
    side = rng.choice(sides)
    shape = rng.choice(([count], [side, count // side], [count // side, side], [1, side, count // side], [count, 1]))
    entry.update(dtype=kind, shape=shape)
    listed.update(dtype=names[kind], shape=shape)


def _header_checksum(header: Mapping[str, Any]) -> str:
    text = json.dumps(header, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


# NumPy arrays and zip files.


def npy_header(rng: random.Random, data: bytes) -> bytes:
    """Change the header's text; its length is made right."""
    width = 2 if data[6:7] == b"\x01" else 4
    start = 8 + width
    length = int.from_bytes(data[8:start], "little")
    text, payload = data[start : start + length].rstrip(), data[start + length :]
    how = rng.random()
    if how < 0.5:
        shape = rng.choice(
            (
                "(-5, 8)",
                "(-2, -20, 8)",
                "(8589934592, 2147483648, 8)",
                "(40, 8(",
                "()",
                "(8,)",
                "(40, 8, 1, 1)",
                "(0, 8)",
                "(40.0, 8)",
                "('a', 8)",
                "(True, 8)",
                "None",
                "(1000000000, 8)",
                f"({'9' * 400}, 8)",
                "[40, 8]",
                "(40, 0)",
            )
        )
        text = re.sub(rb"'shape': \([^)]*\)", f"'shape': {shape}".encode(), text)
    elif how < 0.7:
        descr = rng.choice(
            (
                "'<f8'",
                "'|O'",
                "'<f2'",
                "'>f4'",
                "'<i4'",
                "'<U4'",
                "'|V0'",
                "'<f16'",
                "[('a', '<f4')]",
                "'<f4', ",
                "('<f4', (2,))",
                "'m8[s]'",
                "'x'",
                "1",
                "None",
                "('<f4', 100000000000)",
                "[('a', '|O')]",
                "'|b1'",
                "'<c8'",
            )
        )
        text = re.sub(rb"'descr': '[^']*'", f"'descr': {descr}".encode(), text)
    elif how < 0.8:
        text = text.replace(
            b"'fortran_order': False", rng.choice((b"'fortran_order': True", b"'fortran_order': 2", b""))
        )
    elif how < 0.85:
        text = rng.choice(
            (
                b"(" * 4000,
                b"[" * 9000,
                b"-" * 9000,
                b"{1: 2}",
                b"__import__('os').system('touch ran')",
                b"'" + b"x" * 9900,
            )
        )
    else:
        text = words(rng, text) if rng.random() < 0.5 else any_bytes(rng, text)
    text = text[:65000] + b" " * (-(start + len(text) + 1) % 64) + b"\n"
    return data[:8] + len(text).to_bytes(width, "little") + text + payload


def zip_members(rng: random.Random, data: bytes, change: Mapping[str, Mutator], sentinel: str | None = None) -> bytes:
    """Write a zip file anew with one member changed, gone, twice, packed or called otherwise; CRCs are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:
        return any_bytes(rng, data)
    which = rng.randrange(len(members))
    name, content = members[which]
    how = rng.random()
    if how < 0.08:
        del members[which]
    elif how < 0.14:
        members.append((name, content))
    elif how < 0.2:
        members[which] = (rng.choice(("x", "../x", "/x", name + "/", "a\\b", "é" * 200)), content)
    elif how < 0.28 and sentinel is not None:
        pickles = [i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")] or [which]
        members[pickles[0]] = (members[pickles[0]][0], pickle.dumps(Payload(sentinel), protocol=2))
    else:
        mutate = next((mutate for end, mutate in change.items() if name.endswith(end)), any_bytes)
        members[which] = (name, mutate(rng, content))
    packed = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue() if rng.random() < 0.8 else any_bytes(rng, out.getvalue())


def pickle_code(rng: random.Random, data: bytes) -> bytes:
    """Change single operations of a pickle: numbers, names, order."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        if len(content) < 4:
            break
        place = rng.randrange(2, len(content))
        how = rng.randrange(4)
        if how == 0:
            content[place] = rng.choice(b".()0}]K\x85\x86\x87RQcbutJMNq\x88\x89sUX")
        elif how == 1:
            content[place:place] = rng.choice(
                (b"0", b"N", b"Q", b"R", b"J\xff\xff\xff\x7f", b"J\xfe\xff\xff\xff", b"\x8a\x08" + b"\xff" * 8)
            )
        elif how == 2:
            del content[place : place + rng.choice((1, 2, 5))]
        else:
            numbers = [match.start() for match in re.finditer(rb"K.|M..|J....", bytes(content), re.DOTALL)]
            if numbers:
                place = rng.choice(numbers)
                width = {ord("K"): 2, ord("M"): 3, ord("J"): 5}[content[place]]
                content[place : place + width] = rng.choice(
                    (
                        b"J\xff\xff\xff\x7f",
                        b"J\xfe\xff\xff\xff",
                        b"K\0",
                        b"K\1",
                        b"\x8a\x09" + b"\xff" * 8 + b"\0",
                        b"N",
                        b"\x88",
                    )
                )
    return bytes(content)


# Pictures.


def png_chunks(rng: random.Random, data: bytes) -> bytes:
    """Change a chunk of a PNG file, with its CRC made right, or the order of chunks."""
    chunks = []
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return any_bytes(rng, data)
    which = rng.randrange(len(chunks))
    kind, content = chunks[which]
    how = rng.random()
    if how < 0.25:
        width, height = (rng.choice((0, 1, 2, 24, 20000, 2**31 - 1, 2**32 - 1)) for _ in range(2))
        depth, color, *rest = (rng.choice((0, 1, 2, 4, 8, 16, 3, 255)) for _ in range(5))
        header = struct.pack(">II", width, height) + (
            bytes((depth, color, *rest)) if rng.random() < 0.5 else chunks[0][1][8:13]
        )
        chunks[0] = (chunks[0][0], header)
    elif how < 0.45 and kind == b"IDAT":
        try:
            pixels = zlib.decompress(content)
        except zlib.error:
            pixels = content
        chunks[which] = (kind, zlib.compress(any_bytes(rng, pixels) if rng.random() < 0.9 else bytes(3_000_000)))
    elif how < 0.6:
        extra = rng.choice(
            (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"gAMA", b"acTL", b"fcTL", b"sBIT", b"tEXt", b"pHYs")
        )
        chunks.insert(rng.randrange(len(chunks) + 1), (extra, rng.randbytes(rng.choice((0, 1, 5, 100)))))
    elif how < 0.7:
        del chunks[which]
    else:
        chunks[which] = (kind, any_bytes(rng, content))
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def tiff_tags(rng: random.Random, data: bytes) -> bytes:
    """Change type, count or value of tags of a TIFF file."""
    content = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", content, 4)
        (count,) = struct.unpack_from(order + "H", content, start)
        for _ in range(rng.choice((1, 1, 2, 3))):
            entry = start + 2 + 12 * rng.randrange(count)
            how = rng.random()
            if how < 0.15:
                struct.pack_into(
                    order + "H",
                    content,
                    entry,
                    rng.choice((254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 317, 322, 324, 338, 339)),
                )
            elif how < 0.35:
                struct.pack_into(order + "H", content, entry + 2, rng.choice((*range(14), 16, 255)))
            elif how < 0.5:
                struct.pack_into(order + "I", content, entry + 4, rng.choice(_EXTREMES) & 0xFFFFFFFF)
            else:
                values = (
                    *(one & 0xFFFFFFFF for one in _EXTREMES),
                    3,
                    5,
                    7,
                    8,
                    16,
                    32,
                    64,
                    1000,
                    20000,
                    1_500_000,
                    32773,
                    50000,
                    34925,
                )
                wide = struct.unpack_from(order + "H", content, entry + 2)[0] == 3 and rng.random() < 0.7
                value = rng.choice(values)
                struct.pack_into(
                    order + ("H" if wide else "I"), content, entry + 8, value & (0xFFFF if wide else 0xFFFFFFFF)
                )
    except (struct.error, ValueError):
        return any_bytes(rng, data)
    return bytes(content)
