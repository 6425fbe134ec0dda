"""Background removal, clustering, padding and resizing of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("scipy")

from data_trees import scene

from mmad_bank.data import Preprocessing, Sample, normalize_rgb, preprocess
from mmad_bank.data.preprocessing import near_plane, pad_square, resize_nearest
from mmad_bank.errors import InputError


def sample(xyz: np.ndarray, mask: np.ndarray | None = None) -> Sample:
    rgb = torch.full((3, *xyz.shape[:2]), 0.6)
    truth = None if mask is None else torch.from_numpy(mask)
    cloud = torch.from_numpy(np.ascontiguousarray(xyz.transpose(2, 0, 1)))
    return Sample(rgb, cloud, truth, id="part/test/good/000", xyz_path=Path("000.tiff"))


def box(height: int, width: int) -> np.ndarray:
    """Where scene() has its box."""
    inside = np.zeros((height, width), dtype=bool)
    inside[height // 2 - 8 : height // 2 + 8, width // 2 - 8 : width // 2 + 8] = True
    return inside


def test_everything_on_the_plane_goes_and_the_object_stays() -> None:
    xyz = scene(60, 90)
    xyz[2, 3] = 0  # unmeasured
    on_plane = near_plane(xyz, Preprocessing())
    measured = (xyz != 0).all(axis=-1)
    assert np.array_equal(on_plane[measured], ~box(60, 90)[measured])
    result = preprocess(sample(xyz), Preprocessing.recipe(size=None))
    inside = pad_square(box(60, 90), 100, "zero")
    assert result.rgb.shape == (3, 100, 100)
    assert np.array_equal(result.measured.numpy(), inside)
    assert np.array_equal(result.xyz.numpy()[:, inside], xyz[box(60, 90)].T)  # not a bit changed
    unmeasured = pad_square(~measured, 100, "zero")
    assert (result.rgb.numpy()[:, ~inside & ~unmeasured] == 0).all()
    assert np.allclose(result.rgb.numpy()[:, inside], 0.6, atol=1 / 255)
    assert np.allclose(result.rgb.numpy()[:, unmeasured], 0.6, atol=1 / 255)  # removed is what is on the plane


def test_the_largest_cluster_is_kept() -> None:
    xyz = scene(90, 90)
    xyz[4:10, 60:66, 2] -= 0.02  # 36 points: an object as well, but the smaller one
    xyz[70, 70, 2] -= 0.05  # a flying pixel
    result = preprocess(sample(xyz), Preprocessing.recipe(size=None))
    assert np.array_equal(result.measured.numpy(), pad_square(box(90, 90), 100, "zero"))
    everything = preprocess(sample(xyz), Preprocessing.recipe(size=None, eps=None))
    assert int(everything.measured.sum()) == 256 + 36 + 1


def test_recipes_differ_where_the_papers_do() -> None:
    xyz, mask = scene(60, 90), box(60, 90)
    mask[:, 0] = True
    m3dm = preprocess(sample(xyz, mask))
    cfm = preprocess(sample(xyz, mask), Preprocessing.recipe("cfm"))
    assert m3dm.size == cfm.size == (224, 224)
    assert torch.equal(m3dm.xyz, cfm.xyz)
    assert (m3dm.rgb[:, 0] == 0).all()
    assert torch.allclose(cfm.rgb, torch.tensor(0.6), atol=1 / 255)  # background and edge padding
    assert m3dm.mask is not None
    assert cfm.mask is not None
    assert not m3dm.mask[:, 0].any()
    assert cfm.mask[:, 0].all()
    assert preprocess(sample(xyz), Preprocessing.recipe("mdss")).size == (256, 256)
    assert int(preprocess(sample(xyz), Preprocessing.recipe("keep", size=None)).measured.sum()) == 5400


def test_cloud_and_mask_stay_aligned() -> None:
    xyz = scene(100, 100)
    result = preprocess(sample(xyz, box(100, 100)))
    assert result.mask is not None
    assert torch.equal(result.mask, result.measured)
    assert torch.isin(result.xyz, torch.from_numpy(xyz)).logical_or(result.xyz == 0).all()  # no averaged points


def test_nearest_takes_the_pixel_under_the_centre() -> None:
    assert resize_nearest(np.arange(16).reshape(4, 4), 2).tolist() == [[5, 7], [13, 15]]
    assert resize_nearest(np.arange(4).reshape(2, 2), 4)[0].tolist() == [0, 0, 1, 1]


def test_padding_is_centred() -> None:
    padded = pad_square(np.ones((2, 3)), 5, "zero")
    assert padded.sum(axis=0).tolist() == [0, 2, 2, 2, 0]
    assert padded.sum(axis=1).tolist() == [0, 3, 3, 0, 0]
    assert (pad_square(np.ones((2, 3, 3)), 6, "edge") == 1).all()


def test_padding_may_mirror_the_picture_as_often_as_it_takes() -> None:
    padded = pad_square(np.array([[1, 2, 3, 4, 5, 6, 7, 8], [10, 20, 30, 40, 50, 60, 70, 80]]), 8, "reflect")
    assert padded[:, 0].tolist() == [10, 1, 10, 1, 10, 1, 10, 1]
    assert padded[2:4].tolist() == [[10, 20, 30, 40, 50, 60, 70, 80], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert (pad_square(np.full((1, 5), 7), 5, "reflect") == 7).all()  # a line has nothing to be mirrored


def test_a_mirrored_picture_is_padded_with_itself() -> None:
    """Colour image and mask alike; the cloud's padding stays unmeasured."""
    wide = Sample(torch.rand(3, 20, 40), torch.ones(3, 20, 40), torch.zeros(20, 40, dtype=torch.bool))
    settings = Preprocessing.recipe("keep", size=40, pad="reflect")
    result = preprocess(wide, settings)
    assert result.preparation == settings
    torch.testing.assert_close(result.rgb[:, 9], result.rgb[:, 11])
    assert not result.measured[:10].any()
    assert result.measured[10:30].all()


def test_normalisation_is_imagenets() -> None:
    grey = normalize_rgb(torch.full((2, 3, 4, 4), 0.5))
    assert torch.allclose(grey[1, :, 0, 0], torch.tensor([(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, 0.094 / 0.225]))


OBJECT = box(60, 60)[..., None]


@pytest.mark.parametrize(
    ("xyz", "message"),
    [
        (scene() * 0, "expected measured points, found none"),
        (scene() * OBJECT, "expected a background plane, found 0 measured points in the image's 10-pixel border"),
        (scene() * ~OBJECT, "expected an object, found background only"),
        (scene() * (~OBJECT | (np.eye(60) == 1)[..., None]), "an object of 30 points or more, found 16 scattered"),
    ],
)
def test_what_holds_no_object_is_named(xyz: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=rf"000\.tiff: .*{message}"):
        preprocess(sample(xyz))


def test_bad_settings_are_named() -> None:
    for changes, message in (
        ({"background": "sky"}, "background: expected one of plane, belt, keep, found 'sky'"),
        ({"pad": "mirror"}, "pad: expected one of zero, edge, reflect, found 'mirror'"),
        ({"frame": 0}, "frame: expected at least 1"),
        ({"size": 0}, "size: expected at least 1 pixel"),
    ):
        with pytest.raises(InputError, match=message):
            Preprocessing.recipe(**changes)
    with pytest.raises(InputError, match="recipe: expected one of m3dm, cfm, mdss, eyecandies, keep, found 'x'"):
        Preprocessing.recipe("x")


def test_the_argument_is_left_alone() -> None:
    before = sample(scene(60, 60), box(60, 60))
    rgb, xyz = before.rgb.clone(), before.xyz.clone()
    preprocess(before)
    assert torch.equal(before.rgb, rgb)
    assert torch.equal(before.xyz, xyz)


def test_of_a_flat_cloud_the_line_says_how_to_keep_it() -> None:
    rows, columns = np.mgrid[1:33, 1:33].astype(np.float32) / 100
    sample = Sample(torch.zeros(3, 32, 32), torch.from_numpy(np.stack([columns, rows, np.ones_like(rows)])), None)
    with pytest.raises(InputError, match=r"found background only; .* \(mmad-bank prepare --recipe keep\)"):
        preprocess(sample, Preprocessing.recipe("m3dm", size=32))
    assert preprocess(sample, Preprocessing.recipe("keep", size=32)).size == (32, 32)


def test_a_prepared_sample_is_not_prepared_again() -> None:
    prepared = preprocess(sample(scene(40, 60)), Preprocessing.recipe("keep", size=32))
    with pytest.raises(InputError, match=r"000: is prepared already \(32 pixels, background keep\); expected a raw"):
        preprocess(prepared)


def test_a_narrow_picture_is_not_padded_to_a_vast_square(monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(height: int, width: int) -> Sample:
        cloud = torch.ones(1).expand(3, height, width)
        return Sample(torch.zeros(1).expand(3, height, width), cloud, None, id="wide")

    keep = Preprocessing.recipe("keep", size=32)
    with pytest.raises(
        InputError, match=r"^wide: expected a picture whose square has at most 67,108,864 pixels, found"
    ):
        preprocess(wide(1, 60_000), keep)
    monkeypatch.setenv("MMAD_BANK_MAX_PIXELS", "10000")
    assert preprocess(wide(10, 100), keep).size == (32, 32)
    assert preprocess(wide(20, 160), keep).size == (32, 32)  # of 8 times its pixels
    with pytest.raises(InputError, match="found 160×19, which is padded to 160×160; set MMAD_BANK_MAX_PIXELS"):
        preprocess(wide(19, 160), keep)
    monkeypatch.setenv("MMAD_BANK_MAX_PIXELS", "0")
    assert preprocess(wide(19, 160), keep).size == (32, 32)
