"""Real3D-AD: scattered points seen as organized clouds, with the way back to the points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("tifffile", "PIL", "scipy"):
    pytest.importorskip(package)

from data_trees import add_real3d, shell, write_pcd

from mmad_bank.data import (
    Preprocessing,
    Real3DDataset,
    categories_of,
    few_shot,
    open_dataset,
    open_points,
    prepare,
    preprocess,
)
from mmad_bank.data.layouts import layout_of, unread_folders
from mmad_bank.data.projection import LONGEST, project
from mmad_bank.errors import InputError, MissingSplitError

KEEP = Preprocessing.recipe("keep", size=48)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    root = tmp_path / "Real3D-AD-PCD"
    for name in ("duck", "candybar"):
        add_real3d(root / name)
    return root


# The projection.


def test_every_pixel_shows_the_nearest_of_its_points() -> None:
    points, labels = shell(bump=True)
    xyz, mask, known = project(points, labels)
    height, width, _ = xyz.shape
    assert width == int(np.sqrt(3000 / 2)) > height > width / 2  # 30 mm by 20 mm
    rows, columns = known.pixels.numpy().T
    taken = np.zeros((height, width), dtype=bool)
    taken[rows, columns] = True
    measured = (xyz != 0).all(axis=-1)
    assert not measured[~taken].any()
    assert measured.sum() > 0.97 * taken.sum()  # but for what is seen through gaps
    assert mask is not None
    assert not mask[~measured].any()
    assert mask.any()
    shown = xyz[rows, columns]  # of every point's pixel
    # The view keeps distances: it is a rotation and a shift of the points. Pixels of one point show that one.
    assert known.seen.float().mean() > 0.97
    alone = known.seen.numpy() & (
        np.bincount(rows * width + columns, minlength=height * width)[rows * width + columns] == 1
    )
    own, pixels = points[alone], shown[alone]
    gaps = [np.linalg.norm(one[:-1] - one[1:], axis=1) for one in (own, pixels)]
    assert len(own) > 20
    assert np.allclose(*gaps, atol=1e-3)
    assert known.labels is not None
    assert np.array_equal(known.labels.numpy(), labels)
    assert np.allclose(known.xyz.numpy(), points, atol=1e-5)


def test_the_view_does_not_depend_on_how_the_part_lay() -> None:
    points, labels = shell(bump=True)
    rng = np.random.default_rng(5)
    views = []
    for _ in range(3):
        pose, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        pose *= np.sign(np.linalg.det(pose))
        views.append(project(points @ pose.T + rng.normal(size=3) * 100, labels))
    for xyz, mask, _ in views[1:]:
        assert xyz.shape == views[0][0].shape
        assert np.mean(np.abs(xyz - views[0][0]).max(axis=-1) < 1e-2) > 0.99  # a point on a pixel's border may cross it
        assert np.mean(mask == views[0][1]) > 0.99


def test_one_side_is_seen_as_the_scanner_saw_it_and_the_other_from_behind() -> None:
    half = shell()[0]
    front, back = project(half, None), project(half, None, back=True)
    for (xyz, mask, known), nearest_in_the_middle in ((front, True), (back, False)):
        assert mask is None
        height, width, _ = xyz.shape
        depth = np.where((xyz != 0).all(axis=-1), xyz[..., 2], np.nan)
        middle = np.nanmean(depth[height // 2 - 3 : height // 2 + 3, width // 2 - 3 : width // 2 + 3])
        assert (middle < np.nanmean(depth)) == nearest_in_the_middle
        assert float(known.seen.float().mean()) > 0.95
    whole = project(shell(30_000, whole=True)[0], None)[2]
    assert 0.4 < float(whole.seen.float().mean()) < 0.7  # the other half is hidden


def test_sides_of_a_whole_part_are_turned_about_the_upright_axis() -> None:
    points, labels = shell(30_000, whole=True, bump=True)
    (_, front, _), (_, back, _) = project(points, labels), project(points, labels, back=True)
    assert front is not None
    assert back is not None
    fewer, more = sorted((int(front.sum()), int(back.sum())))
    assert fewer == 0 < more  # the bump is on one side, and not seen through the gaps of the other


def test_odd_clouds(tmp_path: Path) -> None:
    line = np.outer(np.arange(30.0), [1, 2, 3])
    xyz, _, known = project(line, None)
    assert xyz.shape[0] == 1
    assert len(known) == 30
    assert max(project(np.random.default_rng(0).random((400_000, 3)), None)[0].shape) == LONGEST
    for points, message in ((np.ones((9, 3)), "9 points at one place"), (np.eye(3)[:2], "three or more, found 2")):
        with pytest.raises(InputError, match=message):
            project(points, None)
    write_pcd(tmp_path / "a.pcd", np.vstack([np.eye(3), np.full((4, 3), np.nan)]))
    assert len(open_points(tmp_path / "a.pcd").points or ()) == 3
    write_pcd(tmp_path / "d.pcd", np.vstack([np.eye(3), [[1e33, 0, 0]]]))
    assert len(open_points(tmp_path / "d.pcd").points or ()) == 3
    write_pcd(tmp_path / "b.pcd", np.full((4, 3), np.nan))
    with pytest.raises(InputError, match=r"b\.pcd: expected three points or more, found 0"):
        open_points(tmp_path / "b.pcd")
    write_pcd(tmp_path / "c.pcd", np.ones((4, 3)))
    with pytest.raises(InputError, match=r"c\.pcd: points: expected an object, found 4 points at one place"):
        open_points(tmp_path / "c.pcd")


# The reader.


def test_real3d_is_recognized_and_read(toys: Path) -> None:
    assert layout_of(toys) == layout_of(toys / "duck") == "real3d"
    assert categories_of(toys) == ["candybar", "duck"]
    train, test = open_dataset(toys, "duck"), open_dataset(toys, "duck", "test")
    assert isinstance(train, Real3DDataset)
    assert [record.name for record in train.records] == [
        "0_template",
        "0_template-back",
        "1_template",
        "1_template-back",
    ]
    assert [record.id for record in test.records] == [
        "duck/test/good/0_good", "duck/test/good/1_good", "duck/test/bulge/0_bulge_cut", "duck/test/bulge/1_bulge_cut",
    ]  # fmt: skip
    sample = test[2]
    assert sample.modalities == test.modalities == {"xyz"}
    assert sample.units == "m"
    reach = sample.xyz[:, sample.measured]
    assert float((reach.amax(1) - reach.amin(1)).max()) == pytest.approx(0.03, rel=0.1)  # 30 mm
    assert sample.points is not None
    assert sample.points.labels is not None
    assert float(sample.points.xyz.abs().max()) < 0.1
    rows, columns = sample.points.pixels.T
    assert sample.mask is not None
    assert int(sample.points.labels.sum()) > 30
    # Marked pixels are those of marked points, but for what is hidden.
    assert float(sample.mask[rows, columns][sample.points.labels].float().mean()) > 0.8
    assert float(sample.mask[rows, columns][~sample.points.labels].float().mean()) < 0.05
    good = test[0]
    assert good.mask is not None
    assert good.points is not None
    assert good.points.labels is not None
    assert not good.mask.any()
    assert not good.points.labels.any()
    assert open_dataset(toys, "duck", units="cm")[0].xyz.max() > 5 * train[0].xyz.max()
    with pytest.raises(MissingSplitError, match="duck: found no samples of the validation split"):
        open_dataset(toys, "duck", "validation")
    assert unread_folders(toys) == []
    assert len(few_shot(train, 3)) == 3


def test_labels_may_be_in_another_order(toys: Path) -> None:
    before = open_dataset(toys, "duck", "test")[2].points
    truth = toys / "duck" / "gt" / "0_bulge_cut.txt"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join(reversed(lines)) + "\n")
    after = open_dataset(toys, "duck", "test")[2].points
    assert before is not None
    assert after is not None
    assert before.labels is not None
    assert after.labels is not None
    assert torch.equal(before.labels, after.labels)
    for text, message in (
        ("1 2 3\n", "expected four numbers in a line, x y z label, found 3"),
        ("1 2 3 0\n1 nan 3 1\n", "expected finite numbers, found '1 nan 3 1' as the points' line 2"),
        ("a b c d\n", "cannot be read as labels of points"),
        ("900 900 900 1\n", r"expected labels of the points of .*0_bulge_cut\.pcd, found some that are"),
    ):
        truth.write_text(text)
        with pytest.raises(InputError, match=rf"0_bulge_cut\.txt: .*{message}"):
            open_dataset(toys, "duck", "test")[2]
    truth.unlink()
    unknown = open_dataset(toys, "duck", "test")[2]
    assert (unknown.label, unknown.mask) == (1, None)
    assert unknown.points is not None
    assert unknown.points.labels is None


def test_names_of_tests_tell_their_defects(toys: Path) -> None:
    place = toys / "duck" / "test"
    for name in ("7_good_copy", "8_sink", "9_template", "duck0_positive3", "duck0_concavity1"):
        write_pcd(place / f"{name}.pcd", shell(300)[0])
    found = {record.name: record.defect for record in open_dataset(toys, "duck", "test").records}
    assert found["7_good_copy"] == found["duck0_positive3"] == "good"
    assert (found["8_sink"], found["duck0_concavity1"]) == ("sink", "concavity")
    assert "9_template" not in found


def test_a_category_may_be_called_as_a_good_part_is(toys: Path) -> None:
    add_real3d(toys / "goods")
    (toys / "goods" / "test" / "0_bulge_cut.pcd").rename(toys / "goods" / "test" / "goods_0_bulge.pcd")
    found = {record.name: record.defect for record in open_dataset(toys, "goods", "test").records}
    assert (found["0_good"], found["goods_0_bulge"]) == ("good", "bulge")


def test_a_file_may_be_called_as_the_other_side_is(toys: Path) -> None:
    place = toys / "duck" / "test"
    (place / "1_good-back.pcd").write_bytes((place / "1_good.pcd").read_bytes())
    samples = {sample.id: sample for sample in open_dataset(toys, "duck", "test")}
    assert torch.equal(samples["duck/test/good/1_good-back"].xyz, samples["duck/test/good/1_good"].xyz)
    assert torch.equal(open_points(place / "1_good-back.pcd").xyz, open_points(place / "1_good.pcd").xyz)
    first = toys / "duck" / "train" / "0_template.pcd"
    first.with_name("0_template-back.pcd").write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=r"0_template-back: expected one sample of this name, found .*\.pcd and"):
        open_dataset(toys, "duck")


def test_prepared_clouds_are_the_raw_ones_preprocessed(toys: Path, tmp_path: Path) -> None:
    result = prepare(toys, tmp_path / "out", KEEP)
    assert (result.written, result.failed) == (16, {})
    assert not list((tmp_path / "out").rglob("rgb"))
    assert prepare(toys, tmp_path / "out", KEEP).cached == 16
    for split in ("train", "test"):
        raw, made = open_dataset(toys, split=split), open_dataset(tmp_path / "out", split=split)
        assert made.modalities == {"xyz"}
        for one, other in zip(raw, made, strict=True):
            expected = preprocess(one, KEEP)
            assert torch.equal(expected.xyz, other.xyz)
            assert (one.id, expected.frame, other.preparation) == (other.id, other.frame, KEEP)
            if one.mask is not None:
                assert expected.mask is not None
                assert other.mask is not None
                assert torch.equal(expected.mask, other.mask)
    assert prepare(toys, tmp_path / "other").settings["background"] == "keep"
