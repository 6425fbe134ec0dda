"""PyTorch files where PyTorch's own restricted loading is not to be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmad_bank._internal.state_dicts import load_state, read_torch
from mmad_bank.bank import open_dump
from mmad_bank.errors import FormatError, InputError


@pytest.mark.parametrize(
    ("version", "safe"),
    [("2.2.0", False), ("2.5.1+cu121", False), ("2.9.1", False), ("2.10.0", True), ("2.14.1+cpu", True),
     ("3.0.0", True), ("10.2.0a0", True)],
)  # fmt: skip
def test_old_versions_read_no_pt_files(
    version: str, safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.rand(2, 3)}, tmp_path / "a.pt")
    save_file({"a": torch.rand(2, 3)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    for read in (read_torch, open_dump):
        read(tmp_path / "a.safetensors")
        if safe:
            read(tmp_path / "a.pt")
        else:
            with pytest.raises(InputError, match=r"a\.pt: not read, because PyTorch .* upgrade to torch>=2\.10"):
                read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (torch.tensor([torch.nan]), "to be finite, found NaN or infinity"),
        (torch.tensor([torch.inf], dtype=torch.float16), "to be finite, found NaN or infinity"),
        (torch.tensor([1]), "of kind float32, found int64"),
        (torch.tensor([1j]), "of kind float32, found complex64"),
    ],
)
def test_values_that_are_no_weights_are_refused(tmp_path: Path, bias: torch.Tensor, words: str) -> None:
    layer = torch.nn.Linear(2, 1)
    before = layer.bias.item()
    save_file({"weight": torch.ones(1, 2), "bias": bias}, tmp_path / "layer.safetensors")
    with pytest.raises(FormatError, match=rf"layer\.safetensors: expected bias {words}"):
        load_state(layer, tmp_path / "layer.safetensors")
    assert layer.bias.item() == before


@pytest.mark.parametrize(
    "odd",
    [
        torch.rand(1, 1).expand(10**6, 10**6),
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.rand(3, 3), 0.1, 0, torch.qint8),
        torch.empty(3, 3, device="meta"),
    ],
    ids=["repeated", "sparse", "quantized", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_is_left_out(tmp_path: Path, odd: torch.Tensor) -> None:
    whole = torch.rand(4, 4)
    torch.save(
        {"odd": odd, "view": whole[1:, ::2], "turned": whole.T, "one": torch.ones(1).expand(9)}, tmp_path / "x.pt"
    )
    found = read_torch(tmp_path / "x.pt")
    assert list(found) == ["view", "turned", "one"]
    assert torch.equal(found["view"], whole[1:, ::2])
