import hashlib

import numpy as np
import pytest

from mmad_bank._internal import checksum


def by_the_definition(data: bytes, segment: int, lanes: int) -> str:
    total = hashlib.blake2b(digest_size=16)
    for first in range(0, len(data), segment):
        piece = data[first : first + segment]
        piece += bytes(-len(piece) % (8 * lanes))
        accumulators = [0] * lanes
        for position, word in enumerate(np.frombuffer(piece, "<u8").tolist()):
            mixed = (accumulators[position % lanes] + word) * 0x9E3779B97F4A7C15 % 2**64
            accumulators[position % lanes] = mixed ^ (mixed >> 32)
        total.update(hashlib.blake2b(np.array(accumulators, "<u8").tobytes(), digest_size=16).digest())
    total.update(len(data).to_bytes(8, "little"))
    return total.hexdigest()


@pytest.mark.parametrize("length", [0, 1, 8, 63, 64, 65, 512, 1000, 1536])
def test_is_its_definition(monkeypatch, length):
    monkeypatch.setattr(checksum, "_LANES", 8)
    monkeypatch.setattr(checksum, "_SEGMENT", 512)
    data = np.random.default_rng(length).integers(0, 256, length).astype(np.uint8)
    assert checksum.checksum(data) == by_the_definition(data.tobytes(), 512, 8)


def test_whole_size_definition():
    data = np.random.default_rng(0).integers(0, 256, (1 << 17) + 5).astype(np.uint8)
    assert checksum.checksum(data) == by_the_definition(data.tobytes(), 16 << 20, 16384)


def test_every_changed_bit_shows():
    data = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    before = checksum.checksum(data)
    bits = data.view(np.uint32)
    for position in (0, 1, 2500, 4999):
        for bit in range(32):
            bits[position] ^= np.uint32(1) << np.uint32(bit)
            assert checksum.checksum(data) != before
            bits[position] ^= np.uint32(1) << np.uint32(bit)
    assert checksum.checksum(data) == before
    assert checksum.checksum(-data) != before  # the top bits of many words at once
    assert checksum.checksum(data.reshape(100, 50)) == before


def test_swapped_rows_and_zeros_at_the_end_show():
    data = np.random.default_rng(2).standard_normal((40000, 4)).astype(np.float32)
    swapped = data.copy()
    swapped[[0, 32768]] = swapped[[32768, 0]]
    assert checksum.checksum(data) != checksum.checksum(swapped)
    assert checksum.checksum(np.append(data.ravel(), np.float32(0))) != checksum.checksum(data)
