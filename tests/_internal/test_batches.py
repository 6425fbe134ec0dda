"""What cannot be used in a batch costs itself only."""

from __future__ import annotations

import pytest

from mmad_bank._internal.batches import run_batch
from mmad_bank.errors import FormatError, InputError, MissingExtraError, MmadBankError


def test_the_others_of_a_batch_are_run_and_reasons_are_told_in_order() -> None:
    calls: list[list[int]] = []
    told: list[tuple[int, str]] = []

    def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        for number in numbers:
            if number < 0:
                raise (InputError if number == -1 else FormatError)(f"{number} is below 0")
        return [2 * number for number in numbers]

    def failed(number: int, why: MmadBankError) -> None:
        told.append((number, str(why)))

    assert run_batch(double, [1, 2], failed) == [2, 4]
    assert calls == [[1, 2]]
    assert run_batch(double, [1, -1, 3, -2], failed) == [2, None, 6, None]
    assert calls[1:] == [[1, -1, 3, -2], [1], [-1], [3], [-2]]
    assert told == [(-1, "-1 is below 0"), (-2, "-2 is below 0")]
    assert run_batch(double, [-1], failed) == [None]


@pytest.mark.parametrize("error", [MissingExtraError("timm", "multimodal", "ViT"), RuntimeError("a fault of ours")])
def test_what_is_no_items_fault_ends_the_run(error: Exception) -> None:
    def fail(items: list[int]) -> list[int]:
        raise error

    with pytest.raises(type(error)):
        run_batch(fail, [1, 2], lambda item, why: pytest.fail("told of an item"))
