"""The adaptor of anomalib's Patchcore on a stand-in for it: what is selected, searched, kept, copied and traced."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from patchcore_stand_in import Patchcore, PatchcoreModel

from mmad_bank import MemoryBank
from mmad_bank.errors import FormatError, InputError, MissingExtraError
from mmad_bank.integrations.anomalib import accelerate, from_bank, restore, to_bank, write_checkpoint


def pictures(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 8, 9, generator=torch.Generator().manual_seed(seed))


def fitted(*, before: bool = False, **options: Any) -> Patchcore:
    """Return a fitted model, accelerated before its fit or not at all."""
    made = Patchcore()
    if before:
        assert accelerate(made, **options) is made
    made.train()(pictures())
    torch.manual_seed(3)
    made.model.subsample_embedding(0.2)
    made._is_fitted[:] = True
    return made.eval()


def test_coreset_and_scores_are_those_of_the_model_itself() -> None:
    plain, ours = fitted(), fitted(before=True)
    assert torch.equal(ours.model.memory_bank, plain.model.memory_bank)
    assert ours.model.embedding_store == []
    torch.testing.assert_close(ours(pictures(seed=1)), plain(pictures(seed=1)), rtol=1e-5, atol=1e-6)
    assert (plain.model.searches, ours.model.searches) == (2, 0)
    torch.testing.assert_close(accelerate(plain)(pictures(seed=1)), ours(pictures(seed=1)), rtol=0, atol=0)
    assert plain.model.searches == 2


@pytest.mark.parametrize("k", [1, 3])
def test_a_search_has_the_models_shapes(k: int) -> None:
    plain, ours = fitted(), accelerate(fitted())
    queries = torch.rand(5, 3)
    for found, expected in zip(
        ours.model.nearest_neighbors(queries, k), plain.model.nearest_neighbors(queries, k), strict=True
    ):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        torch.testing.assert_close(found, expected)
    distances, _ = ours.half().model.nearest_neighbors(queries.half(), k)
    assert distances.dtype == torch.float16


class Derived(PatchcoreModel):
    """A program's own kind of the model, in a module of its own."""


def test_a_derived_model_is_accelerated_too() -> None:
    ours = accelerate(Derived())
    ours.train()(pictures())
    ours.subsample_embedding(0.1)
    assert isinstance(ours, Derived)
    assert len(ours.memory_bank) == 28
    assert type(pickle.loads(pickle.dumps(ours))) is Derived


def test_the_selection_can_do_without_the_projection() -> None:
    whole, projected = fitted(before=True, project=False), fitted(before=True)
    assert len(whole.model.memory_bank) == len(projected.model.memory_bank) == 57
    assert not torch.equal(whole.model.memory_bank, projected.model.memory_bank)


def test_the_models_own_errors_stay() -> None:
    ours = accelerate(Patchcore())
    with pytest.raises(ValueError, match="Embedding store is empty"):
        ours.model.subsample_embedding(0.1)
    ours.train()(pictures())
    with pytest.raises(ValueError, match="coreset_size must be positive"):
        ours.model.subsample_embedding(0.001)
    with pytest.raises(RuntimeError):
        accelerate(fitted()).model.nearest_neighbors(torch.rand(5, 3), 99)


def test_weights_and_buffers_have_the_same_names() -> None:
    plain, ours = fitted(), accelerate(fitted())
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert isinstance(ours.model, PatchcoreModel)
    assert (type(ours.model).__name__, type(ours.model).__module__) == (
        PatchcoreModel.__name__,
        PatchcoreModel.__module__,
    )
    assert str(ours) == str(plain)


def change(model: PatchcoreModel, how: str) -> None:
    other = torch.rand(30, 3, generator=torch.Generator().manual_seed(9))
    if how == "replaced":
        model.memory_bank = other
    elif how == "in place":
        model.memory_bank.mul_(2)
    elif how == "loaded":
        model.load_state_dict({**model.state_dict(), "memory_bank": other})
    elif how == "resized":
        model.memory_bank.resize_(20, 3)
    else:
        with torch.inference_mode():
            model.memory_bank = other * 3


@pytest.mark.parametrize("how", ["replaced", "in place", "loaded", "resized", "inference"])
def test_a_changed_memory_bank_is_searched_as_it_is(how: str) -> None:
    plain, ours = fitted(), accelerate(fitted())
    ours(pictures(seed=1))
    for one in (plain, ours):
        change(one.model, how)
    torch.testing.assert_close(ours(pictures(seed=1)), plain(pictures(seed=1)))
    assert ours.model.searches == 0


def test_copies_are_accelerated_and_pickles_are_of_the_own_class() -> None:
    ours = accelerate(fitted(), bank_precision="float32")
    expected = ours(pictures(seed=1))
    for twin in (copy.deepcopy(ours), copy.copy(ours.model)):
        assert torch.equal(twin(pictures(seed=1)), expected)
        assert (twin.model if isinstance(twin, Patchcore) else twin).searches == 0
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert b"mmad_bank" not in file.getvalue()
    for twin in (pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)):
        assert type(twin.model) is PatchcoreModel
        torch.testing.assert_close(twin(pictures(seed=1)), expected)
        assert torch.equal(accelerate(twin)(pictures(seed=1)), expected)


def test_what_was_done_can_be_taken_back() -> None:
    ours = restore(accelerate(fitted()))
    assert type(ours.model) is PatchcoreModel
    assert not any("mmad" in name for name in vars(ours.model))
    ours(pictures(seed=1))
    assert ours.model.searches == 2
    assert restore(ours) is ours


def test_traces_and_exports_hold_the_models_own_search() -> None:
    plain, ours = fitted(), accelerate(fitted())
    given, other = pictures(seed=1), pictures(seed=2)
    ours(given)
    exported = torch.export.export(ours, (given,))
    assert "aten.topk" in str(exported.graph)
    torch.testing.assert_close(exported.module()(other), plain(other))
    traced = torch.jit.trace(ours, (given,), check_trace=False)
    torch.testing.assert_close(traced(other), plain(other))
    assert "aten::topk" in str(traced.model.graph)


@pytest.mark.parametrize("case", ["gradient", "nan", "bank not finite", "no patches", "columns"])
def test_the_models_own_search_does_what_the_index_does_not(case: str) -> None:
    plain, ours = fitted(), accelerate(fitted())
    queries = torch.rand(5, 3)
    if case == "gradient":
        queries.requires_grad_()
    elif case == "nan":
        queries[2, 1] = torch.nan
    elif case == "bank not finite":
        for one in (plain, ours):
            one.model.memory_bank[7] = torch.inf
    elif case == "no patches":
        queries = queries[:0]
    else:
        queries = torch.rand(5, 1)
    found, expected = ours.model.nearest_neighbors(queries, 1), plain.model.nearest_neighbors(queries, 1)
    torch.testing.assert_close(found[0], expected[0], equal_nan=True)
    assert ours.model.searches == 1
    assert found[0].requires_grad == (case == "gradient")


def test_a_compiled_model_keeps_its_own_search() -> None:
    """``torch.compile`` traces it; the wrapper is seen through."""
    plain, ours = fitted(), fitted()
    ours.model = torch.compile(ours.model, backend="eager")
    accelerate(ours)
    assert isinstance(ours.model._orig_mod, PatchcoreModel)
    torch.testing.assert_close(ours(pictures(seed=1)), plain(pictures(seed=1)))
    assert restore(ours).model._orig_mod.__class__ is PatchcoreModel


def test_threads_share_a_model() -> None:
    ours = accelerate(fitted())
    expected = accelerate(fitted())(pictures(seed=1))
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(ours(pictures(seed=1)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(one, expected) for one in found)


def test_a_callers_settings_make_no_difference(callers_settings: Any) -> None:
    queries, ours = pictures(seed=1).movedim(1, -1).reshape(-1, 3), accelerate(fitted())
    expected = accelerate(fitted()).model.nearest_neighbors(queries, 1)
    with callers_settings, torch.inference_mode():
        assert torch.equal(ours.model.nearest_neighbors(queries, 1)[0], expected[0])
    assert ours.model.searches == 0


def checkpoint(tmp_path: Path) -> Path:
    torch.save({"state_dict": fitted().state_dict(), "epoch": 1}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_a_checkpoint_becomes_a_bank_file_and_a_model_again(tmp_path: Path) -> None:
    plain = fitted()
    to_bank(checkpoint(tmp_path), extractor="pixels").save(tmp_path / "a.bank")
    bank = MemoryBank.load(tmp_path / "a.bank")
    assert torch.equal(bank.vectors, plain.model.memory_bank)
    assert torch.equal(to_bank(plain).vectors, to_bank(accelerate(fitted()).model).vectors)
    assert bank.extractor == "pixels"
    other = from_bank(bank, accelerate(Patchcore())).eval()
    assert bool(other._is_fitted)
    torch.testing.assert_close(other(pictures(seed=1)), plain(pictures(seed=1)))
    other.model.memory_bank.zero_()
    assert bank.vectors.abs().min() > 0  # the model has its own copy


def test_what_is_no_checkpoint_of_a_patchcore_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.ckpt"
    with pytest.raises(InputError, match=r"b.ckpt: no such checkpoint file"):
        to_bank(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"b.ckpt: not read, because it is no checkpoint"):
        to_bank(path)
    torch.save({"state_dict": Patchcore().state_dict()}, path)
    with pytest.raises(FormatError, match=r"b.ckpt: expected a checkpoint of a fitted Patchcore"):
        to_bank(path)
    torch.save({"state_dict": fitted().state_dict(), "code": Path}, path)
    with pytest.raises(FormatError, match=r"b.ckpt: not read, because .* could run code"):
        to_bank(path)
    torch.save({"state_dict": {"model.memory_bank": torch.full((3, 2), torch.nan)}}, path)
    with pytest.raises(FormatError, match=r"b.ckpt: vectors: row 0 holds NaN"):
        to_bank(path)
    torch.save({"state_dict": {"model.memory_bank": torch.full((3, 2), 1e30)}}, path)
    with pytest.raises(FormatError, match=r"b.ckpt: vector 0 is longer than 1e\+18"):
        to_bank(path)
    torch.save({"state_dict": {"model.memory_bank": torch.ones(3, 0)}}, path)
    with pytest.raises(FormatError, match=r"b.ckpt: expected vectors of at least one value"):
        to_bank(path)


def test_bad_arguments_are_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model: expected a Patchcore of anomalib 2.7, found Linear$"):
        accelerate(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"^bank_precision: expected one of"):
        accelerate(Patchcore(), bank_precision="short")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^source: expected a fitted Patchcore"):
        to_bank(Patchcore())
    with pytest.raises(InputError, match=r"^bank: expected vectors of 3 values as the model has, found 2$"):
        from_bank(MemoryBank(torch.rand(4, 2)), fitted())
    with pytest.raises(InputError, match=r"^bank: expected one without standardization"):
        from_bank(MemoryBank(torch.rand(4, 3), standardization=(0.0, 2.0)), fitted())


def test_a_missing_anomalib_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mmad_bank.integrations import anomalib

    for name in ("anomalib", "anomalib.utils.serialization", "anomalib.models.image.patchcore.lightning_model"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    anomalib._patchcore.cache_clear()
    for call in (
        lambda: anomalib.Patchcore,
        lambda: write_checkpoint(MemoryBank(torch.rand(4, 3)), "a", tmp_path / "b"),
    ):
        with pytest.raises(
            MissingExtraError, match=r"needs the package 'anomalib': pip install 'mmad-bank\[anomalib\]'"
        ):
            call()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        anomalib.nothing  # noqa: B018
