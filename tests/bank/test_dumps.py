import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmad_bank.bank import dumps
from mmad_bank.bank.dumps import open_dump
from mmad_bank.errors import InputError


@pytest.fixture
def values():
    return torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0))


def write_npy(path, tensor):
    np.save(path, tensor.numpy())


def write_npz(path, tensor):
    np.savez(path, tensor.numpy())


def write_npz_compressed(path, tensor):
    np.savez_compressed(path, features=tensor.numpy(), labels=np.arange(3))


def write_safetensors(path, tensor):
    save_file({"features": tensor.contiguous(), "labels": torch.arange(3)}, path)


def write_pt(path, tensor):
    torch.save(tensor, path)


def write_pt_dict(path, tensor):
    torch.save({"features": tensor, "epoch": 3, "labels": torch.arange(3)}, path)


def write_pt_legacy(path, tensor):
    torch.save(tensor, path, _use_new_zipfile_serialization=False)


WRITERS = [
    ("npy", write_npy), ("npz", write_npz), ("npz", write_npz_compressed), ("safetensors", write_safetensors),
    ("pt", write_pt), ("pt", write_pt_dict), ("pt", write_pt_legacy),
]  # fmt: skip
TORCH_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize(("suffix", "write"), WRITERS, ids=[write.__name__ for _, write in WRITERS])
@pytest.mark.parametrize("flat", [False, True], ids=["images", "rows"])
def test_every_format_dtype_and_shape(tmp_path, monkeypatch, values, suffix, write, dtype, flat):
    if dtype is torch.bfloat16 and suffix in ("npy", "npz"):
        pytest.skip("NumPy has no bfloat16")
    stored = (values.reshape(35, 6) if flat else values).to(dtype)
    path = tmp_path / f"features.{suffix}"
    write(path, stored)
    dump = open_dump(str(path))
    expected = stored.reshape(35, 6).float()
    assert (len(dump), dump.dim) == (35, 6)
    assert dump.sources[0] == (str(path), 35, None if flat else 7, None, None)
    blocks = list(dump.blocks(rows=4))
    assert [first for first, _ in blocks] == list(range(0, 35, 4))
    assert all(block.dtype == torch.float32 for _, block in blocks)
    assert torch.equal(torch.cat([block for _, block in blocks]), expected)
    monkeypatch.setattr(dumps, "_BLOCK_BYTES", 4 * 6 * 4)
    rows = torch.tensor([34, 0, 3, 4, 33, 4])
    assert torch.equal(dump.take(rows), expected[rows])
    assert torch.equal(torch.cat([block for _, block in dump.blocks()]), expected)  # a second pass reads the same


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_numpy_byte_and_memory_orders(tmp_path, values, order, dtype, suffix):
    array = np.array(values.numpy(), dtype=dtype, order=order)
    path = tmp_path / f"a.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, array)
    found = torch.cat([block for _, block in open_dump(path).blocks(rows=3)])
    assert torch.equal(found, torch.from_numpy(array.astype("f4").reshape(35, 6)))


def test_arrays_in_memory_are_not_copied(values):
    dump = open_dump(values)
    ((_, block),) = dump.blocks()
    assert block.data_ptr() == values.data_ptr()
    assert torch.equal(next(open_dump(values.numpy()).blocks())[1], values.reshape(35, 6))
    assert open_dump(dump) is dump


def test_a_folder_of_mixed_files_in_the_order_of_their_names(tmp_path, values):
    torch.save(values, tmp_path / "b.pt")
    np.save(tmp_path / "a.npy", values.reshape(35, 6)[:4].numpy().astype(np.float16))
    save_file({"x": values[:2].to(torch.bfloat16)}, tmp_path / "c.safetensors")
    (tmp_path / "notes.txt").write_text("not features")
    (tmp_path / ".hidden.npy").write_bytes(b"")
    dump = open_dump(tmp_path)
    assert [(source.file, source.rows, source.patches) for source in dump.sources] == [
        (str(tmp_path / "a.npy"), 4, None), (str(tmp_path / "b.pt"), 35, 7), (str(tmp_path / "c.safetensors"), 14, 7),
    ]  # fmt: skip
    flat = values.reshape(35, 6)
    expected = torch.cat([flat[:4].half().float(), flat, flat[:14].bfloat16().float()])
    assert torch.equal(torch.cat([block for _, block in dump.blocks(rows=5)]), expected)
    rows = torch.randperm(53, generator=torch.Generator().manual_seed(1))[:20]
    assert torch.equal(dump.take(rows), expected[rows])
    assert len(open_dump([tmp_path / "a.npy", str(tmp_path / "b.pt")])) == 39


def test_take_reads_only_the_blocks_it_needs(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.arange(4000, dtype=np.float32).reshape(1000, 4))
    monkeypatch.setattr(dumps, "_BLOCK_BYTES", 16 * 10)
    reads = []
    original = dumps.Part.read
    monkeypatch.setattr(dumps.Part, "read", lambda self, first, n: reads.append((first, n)) or original(self, first, n))
    found = open_dump(tmp_path).take(torch.tensor([995, 12, 17]))
    assert found[:, 0].tolist() == [3980, 48, 68]
    assert reads == [(12, 6), (995, 1)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("suffix", "write"), WRITERS, ids=[write.__name__ for _, write in WRITERS])
def test_bad_values_name_the_file_and_the_first_patch(tmp_path, values, suffix, write, bad):
    values[2, 3, 1] = values[4, 6, 5] = bad
    np.save(tmp_path / "a.npy", np.zeros((9, 6), np.float32))
    path = tmp_path / f"b.{suffix}"
    write(path, values)
    with pytest.raises(InputError, match=rf"b\.{suffix}: image 2, patch 3 holds NaN or infinity"):
        list(open_dump(tmp_path).blocks(rows=4))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "legacy.pt", "bomb.npy", "bomb.npz", "raw.npy", "raw.pt"])
def test_pickles_are_never_run(tmp_path, name):
    fuse = tmp_path / "fuse"
    path = tmp_path / name
    if name.startswith("raw"):
        path.write_bytes(pickle.dumps(Bomb(fuse)))
    elif name == "legacy.pt":
        torch.save(Bomb(fuse), path, _use_new_zipfile_serialization=False)
    elif path.suffix in (".pt", ".pth"):
        torch.save({"features": Bomb(fuse)}, path)
    else:
        array = np.empty((1, 1), object)
        array[0, 0] = Bomb(fuse)
        (np.save if path.suffix == ".npy" else np.savez)(path, array)
    with pytest.raises(InputError) as caught:
        open_dump(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    if not name.startswith("raw.n"):
        assert "pickled" in str(caught.value)
    assert not fuse.exists()


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.mark.parametrize(("suffix", "write"), WRITERS, ids=[write.__name__ for _, write in WRITERS])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, suffix, write, share):
    path = tmp_path / f"cut.{suffix}"
    write(path, torch.rand(50, 10, 6))
    truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InputError, match=rf"cut\.{suffix}: ") as caught:
        list(open_dump(path).blocks())
    assert "\n" not in str(caught.value)


def test_damaged_zip_members_are_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.random.default_rng(0).random((500, 8)).astype(np.float32))
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 2, len(content) // 2 + 40):
        content[position] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz: "):
        list(open_dump(path).blocks())


def npy(header, version=(1, 0), payload=bytes(1280)):
    text = header.encode()
    text += b" " * (-(11 + len(text)) % 64) + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + payload


def shaped(shape, fortran=False):
    return npy(f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': {shape}, }}")


BAD_HEADERS = {
    "bracket": shaped("(40, 8("),  # tokenize.TokenError
    "word": shaped("(40 8)"),  # SyntaxError
    "digits": shaped(f"({'9' * 30}, 8)"),
    "wraps": shaped("(8589934592, 2147483648, 8)"),  # its product is 0 in 64 bits
    "wraps_fortran": shaped("(8589934592, 2147483648, 8)", True),
    "negative": shaped("(-5, 8)"),
    "negative_twice": shaped("(-2, -20, 8)"),  # its product is 40
    "nested": npy("(" * 9000),
    "type": npy("{'descr': ('<f4', (2,), 3), 'fortran_order': False, 'shape': (40, 8), }"),
    "version": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (40, 8), }", (9, 9)),
    "endless": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(1280),
}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_npy_headers_are_named(tmp_path, name, suffix):
    path = tmp_path / f"{name}.{suffix}"
    if suffix == "npy":
        path.write_bytes(BAD_HEADERS[name])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("features.npy", BAD_HEADERS[name])
    with pytest.raises(InputError, match=rf"{name}\.{suffix}: ") as caught:
        list(open_dump(path).blocks())
    assert "\n" not in str(caught.value)


def test_damaged_compression_is_named(tmp_path):
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{method}.npz"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("features.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (40, 8), }"))
        content = bytearray(path.read_bytes())
        content[46:56] = b"\xa5" * 10
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{method}\.npz: "):
            list(open_dump(path).blocks())


def rewrite_pickle(path, change):
    """Write a .pt file anew with another ``data.pkl``."""
    with zipfile.ZipFile(path) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\x80\x02.",  # pops from an empty stack: IndexError
        lambda content: content[:20],
        lambda content: b"\x80\x02K\x05Q.",  # a persistent id that is no tuple: AssertionError
        lambda content: content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
        lambda content: content.replace(b"K\x04K\x08\x86", b"J\xff\xff\xff\x7fK\x08\x86"),  # shape (2147483647, 8)
        lambda content: content.replace(b"K\x04K\x08\x86", b"J\xfe\xff\xff\xffK\x08\x86"),  # shape (-2, 8)
    ],
)
def test_bad_pickles_of_tensors_are_named(tmp_path, change):
    path = tmp_path / "a.pt"
    torch.save(torch.rand(4, 8), path)
    rewrite_pickle(path, change)
    with pytest.raises(InputError, match=r"a\.pt: ") as caught:
        list(open_dump(path).blocks())
    assert "\n" not in str(caught.value)


def test_a_tensor_that_repeats_its_values_is_refused(tmp_path):
    torch.save(torch.rand(1, 8).expand(1 << 40, 8), tmp_path / "a.pt")
    with pytest.raises(InputError, match="a view that repeats its values"):
        open_dump(tmp_path / "a.pt")


def test_a_file_that_vanishes_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    dump = open_dump(tmp_path / "a.npy")
    (tmp_path / "a.npy").unlink()
    with pytest.raises(InputError, match=r"a\.npy: cannot read rows from 0 on"):
        list(dump.blocks())


@pytest.mark.parametrize("replaced", [False, True], ids=["written over", "replaced"])
@pytest.mark.parametrize(("suffix", "write"), WRITERS[:-1], ids=[write.__name__ for _, write in WRITERS[:-1]])
def test_a_file_that_has_changed_since_it_was_opened_is_refused(tmp_path, suffix, write, replaced):
    """Other values of the same shape would go in silently, or a mix of both."""
    path, other = tmp_path / f"a.{suffix}", tmp_path / f"other.{suffix}"
    write(path, torch.zeros(3, 4, 2))
    dump = open_dump(path)
    dump.read(0, 5)
    write(other if replaced else path, torch.ones(3, 4, 2))
    if replaced:
        other.replace(path)
    later = path.stat().st_mtime_ns + 10**9  # a coarse clock may not tell the two apart
    os.utime(path, ns=(later, later))
    for read in (lambda: dump.read(5, 7), lambda: dump.take(torch.tensor([8])), lambda: list(dump.blocks())):
        with pytest.raises(
            InputError, match=r"/a\.\w+: expected the file as it was when it was opened \(\d+ bytes of .*"
        ):
            read()
    assert (open_dump(path).read(0, 12) == 1).all()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    dump, fromfile = open_dump(tmp_path / "a.npy"), np.fromfile

    def and_change(path, *args, **named):
        found = fromfile(path, *args, **named)
        os.utime(path, (1, 1))
        return found

    monkeypatch.setattr(np, "fromfile", and_change)
    with pytest.raises(InputError, match="found another"):
        dump.read(0, 3)


@pytest.mark.parametrize(
    ("changed", "words"), [(10**18 + 1, r"000000001\)$"), (10**20, r"100000000000\.0+ s after 1970")]
)
def test_the_times_of_a_changed_file_can_be_told_apart(tmp_path, changed, words):
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    os.utime(tmp_path / "a.npy", ns=(10**18, 10**18))
    dump = open_dump(tmp_path / "a.npy")
    try:
        os.utime(tmp_path / "a.npy", ns=(changed, changed))
    except OverflowError:
        pytest.skip("the file system has no such time")
    if os.stat(tmp_path / "a.npy").st_mtime_ns != changed:
        pytest.skip("the file system has no such time")
    with pytest.raises(InputError, match=words):
        dump.read(0, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4), np.int64), "expected floating-point values, found NumPy dtype int64"),
        (np.zeros((3, 4), np.complex64), "expected floating-point values"),
        (np.zeros(4, np.float32), r"expected shape \(N, D\) or \(images, patches, D\), or maps .*found \(4,\)"),
        (np.zeros((1, 2, 3, 4), np.float32), r"shape \(1, 2, 3, 4\) can be read as bchw .* or bhwc .*--axes"),
        (np.zeros((1, 1, 2, 3, 4), np.float32), r"found \(1, 1, 2, 3, 4\)"),
        (np.zeros((0, 4), np.float32), "expected at least one row and one column"),
        (np.zeros((3, 0), np.float32), "expected at least one row and one column"),
        (np.zeros((2, 0, 3), np.float32), "expected at least one row and one column"),
    ],
)
@pytest.mark.parametrize("kind", ["array", "tensor", "npy", "npz", "safetensors", "pt"])
def test_arrays_that_are_no_features(tmp_path, array, message, kind):
    path = tmp_path / f"a.{kind}"
    if kind in ("array", "tensor"):
        features, name = (array if kind == "array" else torch.from_numpy(array)), "features"
    else:
        features, name = path, f"a.{kind}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, array)
    elif kind == "pt":
        torch.save(torch.from_numpy(array), path)
    elif kind == "safetensors":
        save_file({"a": torch.from_numpy(array)}, path)
    with pytest.raises(InputError, match=message.replace("NumPy dtype int64", ".*int64")) as caught:
        open_dump(features)
    assert name in str(caught.value)


def test_longdouble_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.longdouble))
    with pytest.raises(InputError, match="expected floating-point values"):
        open_dump(tmp_path)


def test_lengths_must_agree_and_the_file_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match=r"b\.npy: expected vectors of length 4 as in .*a\.npy, found 5"):
        open_dump(tmp_path)


def test_several_arrays_need_one_called_features(tmp_path):
    np.savez(tmp_path / "a.npz", rgb=np.zeros((3, 4), np.float32), xyz=np.zeros((3, 4), np.float32))
    torch.save({"rgb": torch.zeros(3, 4), "xyz": torch.zeros(3, 4)}, tmp_path / "b.pt")
    save_file({"rgb": torch.zeros(3, 4), "xyz": torch.zeros(3, 4)}, tmp_path / "c.safetensors")
    for name in ("a.npz", "b.pt", "c.safetensors"):
        with pytest.raises(InputError, match=f"{name}: expected one array, or one called 'features'.* rgb .* xyz "):
            open_dump(tmp_path / name)


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        open_dump(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"expected a folder with \.npy"):
        open_dump(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"a\.txt: expected a \.npy.* file, found '\.txt'"):
        open_dump(tmp_path / "a.txt")
    for nothing in ([], (), None, 3, [3]):
        with pytest.raises(InputError, match="features: expected"):
            open_dump(nothing)
    torch.save("text", tmp_path / "t.pt")
    with pytest.raises(InputError, match=r"t\.pt: expected a tensor, found str"):
        open_dump(tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "e.npz", "w"):
        pass
    with pytest.raises(InputError, match=r"e\.npz: expected one array"):
        open_dump(tmp_path / "e.npz")


def test_a_dump_says_its_size_files_and_images(tmp_path):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 3, 4), np.float32))
    assert repr(open_dump(tmp_path)) == "FeatureDump(12 × 4, 2 files, 4 images)"
    assert repr(open_dump(np.zeros((1, 3, 4)))) == "FeatureDump(3 × 4, features, 1 image)"
    assert repr(open_dump(np.zeros((6, 4)))) == "FeatureDump(6 × 4, features)"
