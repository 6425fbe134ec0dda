"""Work on many items at once, of which one may be of no use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mmad_bank.errors import MissingExtraError, MmadBankError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_batch(
    run: Callable[[list[Item]], Sequence[Result]],
    items: Sequence[Item],
    failed: Callable[[Item, MmadBankError], None],
) -> list[Result | None]:
    """Run items together; where that fails, one by one, so that an item that cannot be used costs itself only.

    Args:
        run: Function that makes a result of each item.
        items: The items.
        failed: Function that is told of each item that cannot be used, and why.

    Returns:
        A result of each item in order, None of those that failed.

    Raises:
        MissingExtraError: A package is not installed, which is no item's fault.

    Example:
        >>> def roots(numbers):
        ...     if min(numbers) < 0:
        ...         raise MmadBankError("expected no negative number")
        ...     return [number**0.5 for number in numbers]
        >>> run_batch(roots, [4.0, -1.0, 9.0], lambda number, why: print(f"{number}: {why}"))
        -1.0: expected no negative number
        [2.0, None, 3.0]
    """
    try:
        return list(run(list(items))) if items else []
    except MissingExtraError:
        raise
    except MmadBankError as error:
        if len(items) > 1:
            return [one for item in items for one in run_batch(run, [item], failed)]
        failed(items[0], error)
        return [None]
