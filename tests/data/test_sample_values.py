"""Samples that a program makes: converted to what files give, or refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank.data import Preprocessing, Sample, check_sample, preprocess
from mmad_bank.errors import InputError

KEEP = Preprocessing.recipe("keep", size=16)
BYTES = np.random.default_rng(0).integers(0, 256, (3, 12, 16), dtype=np.uint8)


def made(**changes) -> Sample:
    """A sample of 12×16 pixels whose colours are whole steps of 8 bits."""
    rgb = torch.from_numpy(BYTES.astype(np.float32) / 255)
    xyz = torch.from_numpy(np.random.default_rng(1).uniform(0.1, 1, (3, 12, 16)).astype(np.float32))
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[2:4, 3:6] = True
    return replace(Sample(rgb, xyz, mask, id="part/7"), **changes)


def same(found: Sample, wanted: Sample) -> bool:
    return all(torch.equal(getattr(found, name), getattr(wanted, name)) for name in ("rgb", "xyz", "mask"))


@pytest.mark.parametrize(
    "rgb",
    [
        BYTES,
        torch.from_numpy(BYTES),
        BYTES.astype(np.uint16) * 257,
        BYTES.astype(np.float64) / 255,
        (BYTES / 255).astype(">f8"),
        torch.from_numpy(BYTES).double() / 255,
        (torch.from_numpy(BYTES).float() / 255).requires_grad_(),
        np.ascontiguousarray((BYTES.astype(np.float32) / 255)[:, ::-1])[:, ::-1],
        torch.from_numpy(np.ascontiguousarray(BYTES.transpose(1, 2, 0))).permute(2, 0, 1),
        (torch.from_numpy(BYTES).float() / 255)[:, None].expand(3, 2, 12, 16)[:, 1],
    ],
)
def test_colours_of_other_types_are_those_of_the_file(rgb) -> None:
    found = check_sample(made(rgb=rgb))
    assert found.rgb.dtype == torch.float32
    assert found.rgb.is_contiguous()
    assert not found.rgb.requires_grad
    assert torch.allclose(found.rgb, made().rgb, atol=1e-7)
    assert same(preprocess(made(rgb=rgb), KEEP), preprocess(made(), KEEP))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_colours_of_few_bits_are_their_own_values(dtype: torch.dtype) -> None:
    rgb = made().rgb.to(dtype)
    assert torch.equal(check_sample(made(rgb=rgb)).rgb, rgb.float())


def test_what_resampling_adds_to_the_ends_is_cut_off() -> None:
    rgb = made().rgb.clone()
    rgb[0, 0, :2] = torch.tensor([-0.0015, 1.0015])
    assert check_sample(made(rgb=rgb)).rgb[0, 0, :2].tolist() == [0, 1]


def test_unmeasured_points_of_any_kind_are_zero() -> None:
    wanted = made().xyz.clone()
    wanted[:, 3, 4:8] = 0
    xyz = wanted.double()
    xyz[:, 3, 4], xyz[2, 3, 5], xyz[0, 3, 6], xyz[1, 3, 7] = np.nan, np.nan, -np.inf, 1e300
    for given in (xyz, xyz.numpy(), np.ma.masked_array(made().xyz.numpy(), (wanted == 0).numpy())):
        found = check_sample(made(xyz=given)).xyz
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "mask",
    [
        made().mask.numpy(),
        made().mask.to(torch.uint8) * 255,
        made().mask.to(torch.int64),
        torch.where(made().mask, -0.5, 0.0),
        torch.where(made().mask, 1.0, float("nan")),
        np.asfortranarray(made().mask.numpy()),
    ],
)
def test_masks_of_other_types_mark_the_same_defect(mask) -> None:
    found = check_sample(made(mask=mask)).mask
    assert found.dtype == torch.bool
    assert torch.equal(found, made().mask)
    assert check_sample(made(mask=None)).mask is None


def test_buffers_that_change_later_change_nothing() -> None:
    buffers = {name: getattr(made(), name).clone() for name in ("rgb", "xyz", "mask")}
    arrays = {name: values.numpy().copy() for name, values in buffers.items()}
    for given in (buffers, arrays):
        checked = check_sample(made(**given))
        kept = preprocess(replace(checked, **given), KEEP)
        for values in given.values():
            values[:] = 0
        assert same(checked, made())
        assert same(kept, preprocess(made(), KEEP))


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("rgb", BYTES.astype(np.float32), r"values from 0 to 1, found 0 to 255; divide by 255"),
        ("rgb", made().rgb * 2 - 1, r"values from 0 to 1, found -1 to 1$"),
        ("rgb", made().rgb * 4095, r"values from 0 to 1, found 0 to 4095$"),
        ("rgb", made().rgb * float("nan"), "found NaN or infinity"),
        ("rgb", made().rgb.double() * 1e300, "found NaN or infinity"),
        ("rgb", BYTES.astype(np.int64), "floats from 0 to 1, uint8 or uint16, found int64"),
        ("rgb", BYTES > 9, "found bool"),
        ("rgb", made().rgb.to(torch.complex64), "found complex64"),
        ("rgb", BYTES.astype(object), "found object"),
        ("rgb", BYTES.tolist(), "a torch.Tensor or a NumPy array, found list"),
        ("rgb", None, "found None"),
        ("rgb", made().rgb.to_sparse(), "a dense tensor with values, found a torch.sparse_coo tensor"),
        ("rgb", torch.empty(3, 12, 16, device="meta"), "on meta"),
        ("rgb", BYTES.transpose(1, 2, 0), r"\(3, H, W\), found \(12, 16, 3\); channels come first: permute"),
        ("rgb", np.zeros((12, 16, 4), np.uint8), "without alpha"),
        ("rgb", BYTES[0], r"found \(12, 16\); a grey image is"),
        ("rgb", BYTES[:1], r"found \(1, 12, 16\); a grey image is"),
        ("rgb", BYTES[None], r"found \(1, 3, 12, 16\); one sample is no batch"),
        ("rgb", BYTES[:, :0], r"\(3, H, W\), found \(3, 0, 16\)$"),
        ("xyz", None, "found None"),
        ("xyz", made().xyz[:, ::2, ::2], "12×16 pixels as rgb, found 6×8"),
        ("xyz", made().xyz.permute(1, 2, 0), "channels come first"),
        ("xyz", (made().xyz * 1000).to(torch.int16), "floats in metres, found int16"),
        ("xyz", made().xyz * float("nan"), "measured points, found none in 12×16"),
        ("xyz", made().xyz * 0, "measured points, found none in 12×16"),
        ("mask", made().mask[:, :4], "12×16 pixels as rgb, found 12×4"),
        ("mask", made().mask[None], r"\(H, W\), found \(1, 12, 16\)"),
        ("mask", np.full((12, 16), "x"), "numbers, zero where nothing is wrong"),
    ],
)
def test_other_values_are_refused_in_one_line(field: str, value, line: str) -> None:
    for call in (check_sample, lambda sample: preprocess(sample, KEEP)):
        with pytest.raises(InputError, match=f"^part/7: {field}: expected .*{line}") as error:
            call(made(**{field: value}))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"^camera 3.png: {field}: "):
        check_sample(replace(made(**{field: value}), **{f"{field}_path": Path("camera 3.png")}))


def test_something_else_than_a_sample_is_named() -> None:
    for given in (BYTES, None, "picture.png"):
        with pytest.raises(InputError, match=f"sample: expected a Sample, found {type(given).__name__}"):
            check_sample(given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_a_device_come_back() -> None:
    given = {name: getattr(made(), name).cuda() for name in ("rgb", "xyz", "mask")}
    assert same(check_sample(made(**given)), made())
