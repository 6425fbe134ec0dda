"""The claims of README.md: sentences whose figures are those of the newest results, each with its command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from newest import newest, of_most_data
from pages import machine_words, page_of

from mmad_bank._internal import sections

Row = Mapping[str, Any]
Found = Callable[[str], Row]


def claims(results: Sequence[dict[str, Any]], folder: str) -> list[str]:
    """Return a list item for each claim whose figures are there, and a line that says where they were measured.

    Args:
        results: Those that were read.
        folder: The pages' folder, as README links it.
    """
    made, measured = [], []
    for part, make in _MAKERS.items():
        for values in of_most_data(newest(results, anywhere=True)):
            text = _made(make, values["parts"].get(part, ()))
            if text is not None:
                page = f"{folder}/{page_of(values, part)}.md"
                made.append(f"- {text} [`python benchmarks/{values['benchmark']}.py {part}`]({page})")
                measured.append(f"{machine_words(values)}, {values['date'][:10]}")
                break
    if not made:
        return []
    where = "; ".join(dict.fromkeys(measured))
    return ["\n".join(made), f"Measured on {where}. All figures and commands: [{folder}/]({folder}/index.md)."]


def _made(make: Callable[[str, Found], str], tables: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what a maker says of the first table that has all of its rows and values; None if none has."""
    for table in tables:
        rows = {row.get("name") or row.get("method"): row for row in table["rows"]}
        if table["headline"]:
            try:
                return make(table["title"], rows.__getitem__)
            except (KeyError, TypeError):
                continue
    return None


def _selection(title: str, row: Found) -> str:
    own, loop = row("mmad-bank k_center_greedy"), row("field's loop without the projection")
    n, dim, chosen = _numbers(title)
    return (
        f"**Selection.** Greedy k-center picks {chosen:,} of {n:,} vectors of {dim} values in {own['median']:.1f} s;"
        f" the loop of the papers' published code takes {loop['median']:.0f} s ({loop['how']}),"
        f" **{loop['ratio']:.0f} times** as long."
    )


def _search(title: str, row: Found) -> str:
    own, flat, product = row("mmad-bank, auto"), row("faiss IndexFlatL2"), row("torch.cdist + topk")
    queries, vectors, dim, *_ = _numbers(title)
    if own["exact"] != "all equal":
        raise KeyError("exact")
    return (
        f"**Search.** The {queries} patches of an image find their nearest neighbors among {vectors:,} vectors of {dim}"
        f" values in {own['median']:.0f} ms, all as float64 finds them. FAISS's exact search takes"
        f" **{flat['ratio']:.1f} times** as long, `torch.cdist` **{product['ratio']:.1f} times**."
    )


def _inference(title: str, row: Found) -> str:
    own, cfm, plain = row("M3DM"), row("CFM"), row("M3DM, plain PyTorch")
    true = own.get("vectors")
    sizes = f"banks of {true}" if true else f"28×28 patches and three banks of {next(_numbers(title)):,}"
    search = sections.SEARCH
    return (
        f"**Whole images.** M3DM with {sizes} vectors runs at **{own['times_cfm']:.2f} times** the"
        f" frame rate of CFM, which was invented to do without banks. Its search and scores take"
        f" {own['stages'][search] * 1e3:.0f} ms of {own['median_ms']:.0f} ms; in plain PyTorch they take"
        f" {plain['stages'][search] * 1e3:.0f} ms. CFM needs {cfm['memory_mb']:.0f} MB, M3DM {own['memory_mb']:.0f} MB,"
        f" {row('M3DM, 8-bit banks')['memory_mb']:.0f} MB with 8-bit banks."
    )


def _numbers(title: str) -> Iterator[int]:
    """Yield the whole numbers of a title, in its order."""
    words = (word.strip(",:;").replace(",", "") for word in title.split())
    return (int(word) for word in words if word.isdigit())


_MAKERS: dict[str, Callable[[str, Found], str]] = {
    "selection": _selection,
    "search": _search,
    "inference": _inference,
}
