"""Safetensors files written tensor by tensor."""

from __future__ import annotations

import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from mmad_bank._internal.tensor_files import _TYPES, write_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    tensors = {f"b.{name}": torch.randint(0, 2, (3, 5), generator=draw).to(dtype) for dtype, name in _TYPES.items()}
    tensors |= {f"a.{name}": tensor[:1, :3] for name, tensor in tensors.items()}  # not contiguous
    return {**tensors, "scalar": torch.tensor(2.5), "nothing": torch.empty(0, 7), "turned": torch.rand(3, 4).T}


def test_bytes_are_those_of_the_formats_own_writer(tmp_path: Path) -> None:
    tensors = some_tensors()
    for metadata in (None, {"mmad_bank": '{"größe": "½"}\n'}):
        write_tensors(tmp_path / "t", tensors, metadata)
        assert (tmp_path / "t").read_bytes() == save(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, metadata
        )
        read = load_file(tmp_path / "t")
        assert set(read) == set(tensors)
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "t", "pt") as file:
        assert file.metadata() == metadata


def test_it_writes_into_the_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(bytes(5000))
    path.chmod(0o640)
    inode = path.stat().st_ino
    write_tensors(path, {"a": torch.rand(3)})
    assert path.stat().st_ino == inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert set(load_file(path)) == {"a"}


def test_weights_with_gradients_and_shared_memory_are_written(tmp_path: Path) -> None:
    whole = torch.nn.Parameter(torch.rand(4, 4))
    write_tensors(tmp_path / "t", {"whole": whole, "rows": whole[1:3]})
    assert torch.equal(load_file(tmp_path / "t")["rows"], whole[1:3])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writing_takes_no_second_copy(tmp_path: Path) -> None:
    code = """
        import resource, sys, torch
        from mmad_bank._internal.tensor_files import write_tensors
        tensors = {"a": torch.ones(40 << 20, dtype=torch.uint8), "b": torch.ones(10 << 20)}
        write_tensors(sys.argv[1], {"a": tensors["a"][:9]})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_tensors(sys.argv[1], tensors)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "t")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 << 10  # KiB, of 80 MiB written
