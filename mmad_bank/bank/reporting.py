"""Progress of work in stages: bars on a terminal, a callback for programs, silence otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mmad_bank._internal.progress import progress_bar

Report = Callable[[str, int, int], None]
"""Called with the stage's name, the units done and the units in all."""

Progress = bool | Report


@contextmanager
def reporting(progress: Progress) -> Iterator[Report]:
    """Yield the function that the work reports to: the caller's own, one that shows a bar a stage, or a silent one."""
    if callable(progress):
        yield progress
    elif progress:
        with ExitStack() as bar:
            advance: dict[str, Callable[[int], None]] = {}

            def report(stage: str, done: int, total: int) -> None:
                if stage not in advance:
                    bar.close()  # the stage before
                    advance[stage] = bar.enter_context(progress_bar(stage, total))
                advance[stage](done)

            yield report
    else:
        yield lambda stage, done, total: None
