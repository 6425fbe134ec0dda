"""A model knows how its data were prepared and of what categories they are, in whatever shape they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

for package in ("timm", "scipy", "tifffile"):
    pytest.importorskip(package)

from raw_pictures import KEEP, SIZE, Colours, colours, picture
from small_parts import CFM_ARGUMENTS

from mmad_bank.data import Preprocessing, Sample, open_dataset, prepare, preprocess
from mmad_bank.data.recipes import OtherPreparation
from mmad_bank.data.sequences import as_samples
from mmad_bank.errors import InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import CFM, M3DM, MDSS, PatchCore
from mmad_bank.methods.base import Samples
from mmad_bank.synthetic import write_synthetic

EDGE = replace(KEEP, pad="edge")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, raw and prepared in two ways."""
    root = tmp_path_factory.mktemp("data")
    names = ["chip_cookie", "stud_tray"]
    write_synthetic(root / "raw", size=64, n_train=3, n_validation=1, n_test=3, categories=names)
    prepare(root / "raw", root / "kept", KEEP)
    prepare(root / "raw", root / "edge", EDGE)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Colours:
    return colours().fit(open_dataset(folder / "kept", "stud_tray"))


class Foreign(Dataset[Sample]):
    """A data set of somebody else's making."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Endless(IterableDataset[Sample]):
    def __iter__(self) -> Iterator[Sample]:
        return iter(())


def test_every_wrapper_keeps_the_preparation(folder: Path) -> None:
    dataset = open_dataset(folder / "kept", "stud_tray")
    whole = colours().fit(dataset)
    assert whole.preprocessing_ == KEEP
    assert whole.categories_ == ["stud_tray"]
    wrapped: list[Any] = [
        list(dataset), tuple(dataset), Subset(dataset, [0, 1, 2]), DataLoader(dataset, batch_size=2, shuffle=True),
        ConcatDataset([Subset(dataset, [0]), list(dataset)[1:]]), Foreign(list(dataset)),
        DataLoader(ConcatDataset([dataset.select([0, 1]), dataset.select([2])]), batch_size=None),
        Subset(Foreign([*dataset, *dataset]), [3, 4, 5]),
    ]  # fmt: skip
    for one in wrapped:
        found = colours().fit(one)
        assert found.preprocessing_ == KEEP, one
        assert found.train_ids_ == whole.train_ids_
        assert found.categories_ == ["stud_tray"]
        assert torch.equal(found.banks_["rgb"].vectors, whole.banks_["rgb"].vectors)
    some = colours().fit(Subset(dataset, [2, 0]))
    assert some.train_ids_ == [dataset.records[2].id, dataset.records[0].id]
    test = open_dataset(folder / "kept", "stud_tray", "test")
    assert (
        evaluate(whole, DataLoader(test)).scores == evaluate(whole, test).scores == evaluate(whole, list(test)).scores
    )


def test_raw_samples_are_prepared_as_the_method_wants(folder: Path) -> None:
    raw = open_dataset(folder / "raw", "stud_tray")
    assert colours().fit(list(raw)).preprocessing_ == Preprocessing.recipe("m3dm", size=SIZE)
    candy = [replace(one, xyz_path=Path("001_depth.png")) for one in raw]
    assert colours()._choose_preprocessing(candy).background == "belt"
    with pytest.raises(InputError, match="that one recipe prepares, found some for eyecandies and others"):
        colours().fit([candy[0], raw[0]])


def test_a_mixture_is_refused(folder: Path) -> None:
    raw, kept, edge = (open_dataset(folder / name, "stud_tray") for name in ("raw", "kept", "edge"))
    for mixture in ([raw[0], kept[1]], ConcatDataset([raw, kept])):
        with pytest.raises(
            InputError, match="dataset: expected samples prepared in one way, found raw and prepared ones"
        ):
            colours().fit(mixture)
    for other in ([kept[0], edge[1]], ConcatDataset([kept, Subset(edge, [0])])):
        with pytest.raises(InputError, match="prepared in one way, found pad: zero against edge"):
            colours().fit(other)
    with pytest.raises(
        OtherPreparation, match=r"001.png: prepared otherwise than the samples before it \(pad: edge aga"
    ):
        colours().fit(Foreign([kept[0], edge[1]]))


def test_what_is_no_data_set_is_named(folder: Path) -> None:
    sample = open_dataset(folder / "kept", "stud_tray")[0]
    for wrong, words in (
        (sample, "list of pictures' files, found Sample"),
        ("parts", "found str"), (7, "found int"), ([sample, "a"], r"dataset\[1\]: expected a Sample, found str"),
        (DataLoader(Endless()), "found one of an IterableDataset"), (Endless(), "found Endless"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            colours().fit(wrong)  # type: ignore[arg-type]


def test_data_prepared_otherwise_are_refused(folder: Path, model: Colours) -> None:
    edge = open_dataset(folder / "edge", "stud_tray", "test")
    words = r"prepared otherwise than what the model was fitted on \(pad: edge against zero\); force=True"
    for data in (edge, list(edge), Subset(edge, [0, 1]), DataLoader(edge)):
        with pytest.raises(InputError, match=f"^dataset: {words}"):
            evaluate(model, data)
    with pytest.raises(InputError, match=rf"/rgb/\d+\.png: {words}"):
        model.predict(edge[0])
    for sample in (edge[0], replace(edge[0], preparation=None, frame=None)):
        assert len(model.predict(sample, force=True).notes) == int(sample.prepared)
    forced = evaluate(model, edge, force=True)
    assert forced.notes == ["prepared otherwise than what the model was fitted on (pad: edge against zero)"]
    assert len(forced.scores) == 3
    larger = replace(edge[0], rgb=torch.zeros(3, 80, 80), xyz=torch.ones(3, 80, 80), mask=None)
    with pytest.raises(InputError, match="expected a prepared sample of 64×64 pixels"):
        model.predict(larger, force=True)
    mixed = evaluate(model, Foreign([open_dataset(folder / "kept", "stud_tray", "test")[0], edge[1]]))
    assert len(mixed.scores) == 1
    assert "prepared otherwise" in mixed.failed[edge[1].id]


def test_another_category_is_refused(folder: Path, model: Colours) -> None:
    cookies = open_dataset(folder / "kept", "chip_cookie", "test")
    words = "of category chip_cookie, while the model was fitted on stud_tray; force=True"
    for data in (cookies, open_dataset(folder / "kept", None, "test"), list(cookies)):
        with pytest.raises(InputError, match=f"dataset: {words}"):
            evaluate(model, data)
    with pytest.raises(InputError, match=words):
        model.predict(cookies[0])
    assert evaluate(model, cookies, force=True).notes == [
        "of category chip_cookie, while the model was fitted on stud_tray"
    ]
    assert model.predict(replace(cookies[0], category="")).notes == ()
    both = colours().fit(open_dataset(folder / "kept"))
    assert both.categories_ == ["chip_cookie", "stud_tray"]
    assert both.objections(cookies) == both.objections(open_dataset(folder / "kept", None, "test")) == []


def test_a_saved_model_knows_it_and_an_old_one_finds_it_out(folder: Path, model: Colours, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    manifest = tmp_path / "model" / "model.json"
    content = json.loads(manifest.read_text())
    assert content["categories"] == ["stud_tray"]
    loaded = Colours.load(tmp_path / "model")
    assert (loaded.categories_, loaded.frames_) == (model.categories_, model.frames_)
    for name in ("categories", "frames", "files", "checksum"):  # which an old one has not
        del content[name]
    manifest.write_text(json.dumps(content))
    old = Colours.load(tmp_path / "model")
    assert old.categories_ == ["stud_tray"]
    assert old.frames_ == []
    test = open_dataset(folder / "kept", "stud_tray", "test")
    prediction = old.predict(test[0])
    assert prediction.score == model.predict(test[0]).score
    assert old.explain(prediction)[0].box is None
    old.save(tmp_path / "again")
    assert Colours.load(tmp_path / "again").frames_ == []


def test_representations_of_data_sets(folder: Path) -> None:
    test, train = open_dataset(folder / "raw", None, "test"), open_dataset(folder / "kept", "stud_tray")
    assert repr(test) == (
        f"<FolderDataset {str(folder / 'raw')!r}, folder, test: 6 samples (2 good, 2 color, 2 shape) of chip_cookie,"
        " stud_tray; raw>"
    )
    assert repr(train) == (
        f"<FolderDataset {str(folder / 'kept')!r}, folder, train: 3 samples (3 good) of stud_tray; prepared: 64 pixels,"
        " background keep>"
    )
    assert repr(train.select([])).endswith("folder, empty: 0 samples; prepared: 64 pixels, background keep>")


# Validation.


class Forbidden(Dataset[Sample]):
    """Samples that nobody may look at."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        raise AssertionError("read")


def test_validation_is_read_only_by_methods_that_use_it(folder: Path) -> None:
    for name in ("auto", "validation"):  # verdicts are calibrated on it
        assert PatchCore(calibration=name).uses_validation
        assert not PatchCore(calibration=name).needs_validation
    for kind in (PatchCore, CFM, partial(M3DM, banks=("rgb",)), partial(M3DM, decision="add")):
        assert not kind(calibration="none").uses_validation
        assert not kind(calibration="folds").uses_validation
    assert not MDSS(branches=("rgb",), calibration="none").uses_validation
    for kind in (M3DM, MDSS):  # the decision is learnt on it
        assert kind(calibration="none").needs_validation
        assert kind(calibration="none").uses_validation
    train = open_dataset(folder / "kept", "stud_tray")
    for unused in (Forbidden(), "nothing of the kind"):
        assert colours(calibration="none").fit(train, validation=unused).skipped_ == {}  # type: ignore[arg-type]


def m3dm(samples: Samples, validation: Samples | None) -> M3DM:
    method = M3DM(
        "efficientnet_lite0", "random", rgb_layers=(1,), xyz="fpfh", banks=("xyz", "rgb"), image_size=SIZE, grid=(8, 8)
    )
    return method.fit(samples, validation=validation)


def test_an_unusable_validation_split_names_itself(folder: Path) -> None:
    train = list(open_dataset(folder / "kept", "stud_tray"))
    held_out = list(open_dataset(folder / "kept", "stud_tray", "validation"))
    bad = replace(held_out[0], rgb=held_out[0].rgb * 255, id="stud_tray/validation/good/bright")
    with pytest.raises(InputError, match=r"^validation: no sample can be used; .*expected values from 0 to 1"):
        m3dm(train, [bad])
    assert list(m3dm(train, [*held_out, bad]).skipped_) == ["stud_tray/validation/good/bright"]
    other = list(open_dataset(folder / "edge", "stud_tray", "validation"))
    with pytest.raises(
        InputError, match=r"^validation: prepared otherwise than the training samples \(pad: edge against"
    ):
        m3dm(train, other)
    with pytest.raises(InputError, match=r"^validation\[0\]: expected a Sample, found int"):
        m3dm(train, [1])  # type: ignore[list-item]


def test_padding_is_not_learnt_from() -> None:
    """DLF draws pixels of the pictures only: as many as they have."""
    samples = [preprocess(picture((40, 160), seed), KEEP) for seed in range(3)]
    method = m3dm(samples, None)
    frame = samples[0].frame
    assert frame is not None
    shown = method._shown_pixels(frame)
    seen = torch.zeros(SIZE, SIZE)
    seen.view(-1)[shown] = 1
    assert bool(seen[frame.rows, frame.columns].all())
    assert float(seen.sum()) == seen[frame.rows, frame.columns].numel() == len(shown) < SIZE * SIZE
    assert len(method._shown_pixels(None)) == SIZE * SIZE


def test_samples_of_loaders_are_those_of_one_pass() -> None:
    samples = [picture((20, 20), seed) for seed in range(5)]
    assert (
        [one.id for one in as_samples(DataLoader(samples, batch_size=2, drop_last=True))]
        == [  # type: ignore[arg-type]
            one.id for one in samples[:4]
        ]
    )


# Pictures whose background was removed.


@pytest.fixture
def black(tmp_path: Path) -> Path:
    """A category, raw and prepared as M3DM does, which leaves the pictures black around the part."""
    write_synthetic(tmp_path / "raw", size=96, n_train=3, n_validation=2, n_test=3, categories=["stud_tray"])
    prepare(tmp_path / "raw", tmp_path / "black", Preprocessing.recipe("m3dm", size=SIZE))
    return tmp_path


def cfm(**arguments: Any) -> CFM:
    return CFM("efficientnet_lite0", rgb_layers=(1,), **{**CFM_ARGUMENTS, "xyz": "fpfh", **arguments})


def test_cfm_takes_the_raw_data_where_the_background_was_removed(black: Path) -> None:
    train, test = (open_dataset(black / "black", "stud_tray", split) for split in ("train", "test"))
    with pytest.warns(UserWarning, match=r"black: cfm compares .* takes the raw data instead, .*raw, and prepares"):
        fitted = cfm().fit(train)
    raw = cfm().fit(open_dataset(black / "raw", "stud_tray"))
    assert fitted.preprocessing_ == raw.preprocessing_ == Preprocessing.recipe("cfm", size=SIZE)
    assert fitted.train_ids_ == raw.train_ids_
    with pytest.warns(UserWarning, match="takes the raw data instead"):
        found = evaluate(fitted, test)
    assert found.scores == evaluate(raw, open_dataset(black / "raw", "stud_tray", "test")).scores
    with pytest.warns(UserWarning, match="takes the raw data instead"):
        assert cfm().fit(train.select([2, 0])).train_ids_ == [train.records[2].id, train.records[0].id]
    assert not evaluate(fitted, test, force=True).failed  # as they are, with a note
    colours().fit(train)  # other methods take the black pictures


def test_cfm_takes_the_raw_validation_samples_too(black: Path) -> None:
    train, validation = (open_dataset(black / "black", "stud_tray", split) for split in ("train", "validation"))
    with pytest.warns(UserWarning, match="takes the raw data instead"):
        fitted = cfm(calibration="validation").fit(train, validation=validation)
    train, validation = (open_dataset(black / "raw", "stud_tray", split) for split in ("train", "validation"))
    raw = cfm(calibration="validation").fit(train, validation=validation)
    assert fitted.calibration_ is not None
    assert raw.calibration_ is not None
    assert fitted.calibration_.own.scores.tolist() == raw.calibration_.own.scores.tolist()


def test_raw_data_that_have_changed_since_they_were_prepared_are_told(black: Path) -> None:
    train = open_dataset(black / "black", "stud_tray")
    with pytest.warns(UserWarning, match=r"\(mmad-bank prepare --recipe cfm does it once\)$"):
        cfm().suited(train)
    picture = black / "raw" / "stud_tray" / "train" / "good" / "rgb" / "001.png"
    picture.write_bytes(picture.with_name("000.png").read_bytes())
    words = r"; 1 of the 3 samples there are other files .*, the first stud_tray/train/good/001$"
    with pytest.warns(UserWarning, match=words):
        cfm().suited(train)


def test_cfm_refuses_data_without_background_and_originals(black: Path) -> None:
    train = open_dataset(black / "black", "stud_tray")
    words = r"expected pictures with their background, which cfm compares, found it removed \(zero_rgb: True\); prepare"
    with pytest.raises(InputError, match=f"^dataset: {words}"):
        cfm().fit(list(train))
    model = cfm().fit(open_dataset(black / "raw", "stud_tray"))
    (black / "raw").rename(black / "elsewhere")
    for refused in (lambda: cfm().fit(train), lambda: evaluate(model, open_dataset(black / "black", None, "test"))):
        with pytest.raises(InputError, match=f"^dataset: .*black: {words}"):
            refused()


def test_a_cfm_of_an_older_version_scores_what_it_was_fitted_on(black: Path) -> None:
    model = cfm().fit(open_dataset(black / "raw", "stud_tray"))
    model.preprocessing_ = Preprocessing.recipe("m3dm", size=SIZE)
    assert len(evaluate(model, open_dataset(black / "black", "stud_tray", "test")).scores) == 3
