"""Commands that work on feature dumps and banks: build, extend, score."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.files import real_path
from mmad_bank._internal.progress import doing
from mmad_bank.cli._command import add
from mmad_bank.cli._dumps import AxesOfMaps, ByImage, Features, Key, Reading
from mmad_bank.cli._labels import say_defective
from mmad_bank.cli._options import (
    Address,
    Device,
    FailOnBad,
    Json,
    Overwrite,
    Patches,
    ProjectionDim,
    RayWorkers,
    Reweight,
    ScoreRate,
    Scratch,
    TrustIndex,
)
from mmad_bank.cli._output import (
    are_unfinished,
    check_apart,
    check_output,
    check_output_folder,
    check_outputs,
    emit,
    end,
    say_left_out,
    seconds,
    show_progress,
    size,
    unfinished_outputs,
)
from mmad_bank.cli._over_workers import own_device, selector_of, work_facts, work_rows
from mmad_bank.cli._swapped import check_bank_first
from mmad_bank.cli._values import check_device, check_once, check_positive, parse_paths, parse_projection, parse_share
from mmad_bank.cli._verdicts import (
    check_calibrated,
    check_size_of_images,
    end_on_bad,
    parse_rate,
    verdict_rows,
)
from mmad_bank.cli._words import BankPrecision, option
from mmad_bank.cli._workers import check_workers, cluster_of
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.bank import FeatureDump, MemoryBank

BankFile = Annotated[Path, typer.Argument(metavar="BANK", help="Bank file.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(app, build, extend, score)


def build(
    features: Features,
    out: Annotated[Path, option("--out", "Bank file", "")],
    ratio: Annotated[str | None, option("--ratio")] = None,
    bank_size: Annotated[int | None, option("--bank-size", "to select, in place of a share")] = None,
    index: Annotated[str, option("--index", "")] = "exact",
    nprobe: Annotated[int | None, option("--nprobe")] = None,
    ef_search: Annotated[int | None, option("--ef-search")] = None,
    projection_dim: ProjectionDim = None,
    standardize: Annotated[bool, option("--standardize")] = False,
    seed: Annotated[int, option("--seed", "the random projection")] = 0,
    start: Annotated[int, option("--start")] = 0,
    key: Key = None,
    axes: AxesOfMaps = "auto",
    by_image: ByImage = False,
    bank_precision: Annotated[BankPrecision, option("--bank-precision", "")] = "auto",
    device: Device = "cpu",
    workers: RayWorkers = None,
    address: Address = None,
    scratch: Scratch = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Select a memory bank from feature dumps (exact greedy k-center) and write it to a file."""
    if ratio is not None and bank_size is not None:
        raise InputError("--ratio and --bank-size: expected one of them, found both")
    share = 0.1 if ratio is None else parse_share(ratio, "--ratio")
    check_once(features, "FEATURES")
    check_output(out, "--out", inputs=tuple(features), overwrite=overwrite)
    dimensions = parse_projection(projection_dim)
    from mmad_bank.bank import MemoryBank

    target = own_device(device, workers, address)
    begin = time.perf_counter()
    dump = Reading(key, axes, by_image).open(features)
    say_defective(dump.sources)
    with selector_of(workers, address, scratch, device) as selector:
        bank = MemoryBank.build(
            dump, share, size=bank_size, index=index, projection_dim=dimensions, seed=seed, start=start,
            standardize=standardize, bank_precision=bank_precision, device=target if str(target) != "cpu" else None,
            progress=show_progress(as_json), nprobe=nprobe, ef_search=ef_search, selector=selector,
        )  # fmt: skip
    built = time.perf_counter()
    with doing(f"saving {out}"):
        bank.save(out)
    times = {"build": built - begin, "save": time.perf_counter() - built}
    result = {
        "bank": str(out),
        "rows": len(dump),
        "feature_bytes": len(dump) * dump.dim * 4,
        **describe_bank(bank, out),
        "extractor": bank.extractor,
        "workers": work_facts(selector),
        "seconds": times,
    }
    rows = {
        "features": f"{len(dump):,} × {dump.dim}  ({size(result['feature_bytes'])} as float32)",
        **describe_bank_rows(bank, out),
        **({} if bank.extractor is None else {"extractor": bank.extractor}),
        **work_rows(selector),
        "time": f"build {seconds(times['build'])}, save {seconds(times['save'])}",
    }
    emit(result, rows, title=f"built {out}", as_json=as_json)


def extend(
    bank_file: BankFile,
    features: Features,
    out: Annotated[Path | None, option("--out", "Bank file", "")] = None,
    in_place: Annotated[bool, option("--in-place")] = False,
    radius: Annotated[float | None, option("--radius")] = None,
    at_most: Annotated[int | None, option("--at-most")] = None,
    calibrate: Annotated[list[Path] | None, option("--calibrate")] = None,
    key: Key = None,
    axes: AxesOfMaps = "auto",
    by_image: ByImage = False,
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    workers: RayWorkers = None,
    address: Address = None,
    scratch: Scratch = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add normal samples to a bank: those that lie farther from it than its covering radius.

    A calibration is outdated then, unless --calibrate makes it anew. The p-values that the new images had before they
    were added are an early sign of drift.
    """
    check_bank_first("extend", bank_file, features)
    held_out = parse_paths(calibrate or [], "--calibrate")
    check_once(features, "FEATURES")
    check_once(held_out, "--calibrate")
    target = check_target(bank_file, (*features, *held_out), out, in_place, overwrite)
    from mmad_bank.bank import MemoryBank
    from mmad_bank.cli._extension import extension_facts, extension_rows, judge_new

    target_device = own_device(device, workers, address)
    begin = time.perf_counter()
    with doing(f"loading {bank_file}"):
        bank = MemoryBank.load(bank_file, device=target_device, trust_index=trust_index)
    dump = Reading(key, axes, by_image).open(features, bank.dim)
    dump.check_extractor(bank.extractor, str(bank_file))
    say_defective(dump.sources, bank.sources)
    left_out: dict[str, str] = {}
    others = Reading(key, axes, by_image).open(held_out, bank.dim, left_out) if held_out else None
    before, new = bank.calibration, judge_new(bank, dump, progress=show_progress(as_json))
    with selector_of(workers, address, scratch, device) as selector:
        added = bank.extend(dump, radius=radius, size=at_most, progress=show_progress(as_json), selector=selector)
    if others is not None:
        with argument_called(features="--calibrate"):
            bank.calibrate_again(others, progress=show_progress(as_json), left_out=left_out)
    extended = time.perf_counter()
    with doing(f"saving {target}"):
        bank.save(target)
    times = {"extend": extended - begin, "save": time.perf_counter() - extended}
    moved = extension_facts(new, before, bank.calibration)
    result = {"bank": str(target), "added": added, **describe_bank(bank, target), **moved, "left_out": left_out}
    result |= {"workers": work_facts(selector), "seconds": times}
    rows = {
        "added": f"{added:,} vectors",
        **describe_bank_rows(bank, target),
        **extension_rows(new, moved),
        **work_rows(selector),
        "time": f"extend {seconds(times['extend'])}, save {seconds(times['save'])}",
    }
    emit(result, rows, title=f"extended {target}", as_json=as_json)
    end(left_out)


def score(
    bank_file: BankFile,
    features: Features,
    out: Annotated[
        Path | None,
        option("--out", "File", ", .npz whatever its suffix, with the arrays patch, image, nearest and names"),
    ] = None,
    csv: Annotated[Path | None, option("--csv")] = None,
    maps: Annotated[Path | None, option("--maps", "MAPS/NAME.tiff")] = None,
    reweight: Reweight = "m3dm",
    neighbors: Annotated[int | None, option("--neighbors")] = None,
    patches: Patches = None,
    false_alarm_rate: ScoreRate = None,
    fail_on_bad: FailOnBad = False,
    top: Annotated[int, option("--top")] = 5,
    key: Key = None,
    axes: AxesOfMaps = "auto",
    by_image: ByImage = False,
    bank_precision: Annotated[
        BankPrecision | None,
        option("--bank-precision", " (default: the one that the bank was built with)"),
    ] = None,
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    workers: RayWorkers = None,
    address: Address = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score images against a bank: list the highest, and write patch scores, image scores and what explains them.

    Files that cannot be used are named and left out, and the exit code is 3.

    A (N, D) dump is one image of N patches unless --patches, or names that come with it, say how many an image has.

    Images are judged with --false-alarm-rate or --fail-on-bad, by a bank that calibrate has been run on. The exit code
    of --fail-on-bad, 4, comes before 3.
    """
    check_bank_first("score", bank_file, features)
    outputs = (out, csv, maps)
    job: dict[str, Any] = {"score": [str(real_path(path)) for path in (bank_file, *features)]}
    job |= {"outputs": [path and str(real_path(path)) for path in outputs]}
    mine = overwrite or are_unfinished(outputs, job)
    check_outputs({"--out": out, "--csv": csv}, inputs=(bank_file, *features), overwrite=mine)
    check_positive("--top", top)
    rate = parse_rate(false_alarm_rate)
    check_workers(workers, address, device)
    from mmad_bank import scoring
    from mmad_bank.bank import MemoryBank
    from mmad_bank.bank.scores import Rule
    from mmad_bank.cli._scoring import save, score_elsewhere, score_images, summarise

    rule = Rule(reweight, scoring.check_reweight(reweight, neighbors, "--neighbors"))
    target = check_device(device)
    begin = time.perf_counter()
    loading: dict[str, Any] = {"bank_precision": bank_precision, "trust_index": trust_index}
    with doing(f"loading {bank_file}"):
        bank = MemoryBank.load(bank_file, device=target, **loading)
    calibration = check_calibrated(bank, bank_file, rule, rate) if fail_on_bad or rate is not None else None
    left_out: dict[str, str] = {}
    reading = Reading(key, axes, by_image)
    dump = reading.open(features, bank.dim, left_out)
    dump.check_extractor(bank.extractor, str(bank_file))
    if calibration is not None:
        check_size_of_images(dump, patches, bank_file, calibration)
    if maps is not None:
        _check_maps(maps, _names_of_maps(dump, patches, maps), outputs, (bank_file, *features), mine)
    loaded = time.perf_counter()
    elsewhere = score_elsewhere(
        bank_file, loading, partial(reading.open, features, bank.dim, {}), rule, workers
    ) if workers else None  # fmt: skip
    with cluster_of(workers, address):
        scored_images = score_images(
            bank, dump, patches, reweight, neighbors, progress=show_progress(as_json), elsewhere=elsewhere
        )
    scored = time.perf_counter()
    verdicts = None if calibration is None else calibration.judge(scored_images.scores, rate)
    left_out |= scored_images.left_out
    with unfinished_outputs(outputs, job, of_many=maps is not None):
        save(bank, scored_images, verdicts, out, csv, maps)
    times = {"load": loaded - begin, "score": scored - loaded, "save": time.perf_counter() - scored}
    result, rows = summarise(bank, scored_images, top, reweight, verdicts)
    if calibration is not None:
        result["verdicts"]["outdated"] = calibration.outdated
    rows |= verdict_rows(result.get("verdicts"), bank.calibration, rule)
    rows |= {
        "time": f"load {seconds(times['load'])}, score {seconds(times['score'])}",
        "per image": seconds(times["score"] / len(scored_images)),
    }
    written = {"scores": out and str(out), "table": csv and str(csv), "maps": maps and str(maps)}
    into = " and ".join(str(path) for path in (out, csv, maps) if path is not None)
    emit(
        {**written, **result, "left_out": left_out, "seconds": times}, rows,
        title=f"scored into {into}" if into else f"scored against {bank_file}", as_json=as_json,
    )  # fmt: skip
    say_left_out(left_out)
    end_on_bad(fail_on_bad and verdicts is not None and bool(verdicts.bad.any()))
    end(left_out, said=True)


def _check_maps(
    maps: Path, names: Sequence[str], others: tuple[Path | None, ...], inputs: Sequence[Path], overwrite: bool
) -> None:
    """Refuse a folder for maps of these names that the work would not leave as it should be."""
    check_apart(dict(zip(("--out", "--csv"), others, strict=False)), maps, "--maps", names)
    check_output_folder(maps, "--maps", outputs=names, inputs=inputs, overwrite=overwrite)


def _names_of_maps(dump: FeatureDump, patches: int | None, maps: Path) -> list[str]:
    """Return the names of the files that a dump's maps are written to, in their folder."""
    from mmad_bank._internal.extras import import_extra
    from mmad_bank.bank.dump_scores import patches_of_an_image
    from mmad_bank.cli._scoring import images_of, map_files

    import_extra("tifffile", "tifffile", "writing anomaly maps")  # missing: said before the work
    per_image = patches_of_an_image(dump, patches)
    files = map_files([image for part in dump.parts for image in images_of(part, per_image)], maps)
    return [str(path.relative_to(maps)) for path in files]


def check_target(bank_file: Path, features: Sequence[Path], out: Path | None, in_place: bool, overwrite: bool) -> Path:
    """Return the file that a bank is written to which was made of another: that one itself with ``--in-place``.

    Raises:
        InputError: Neither ``--out`` nor ``--in-place`` is given or both are, or the file cannot be written.
    """
    if (out is None) != in_place:
        raise InputError(f"--out and --in-place: expected one of them, found {'both' if in_place else 'neither'}")
    target = bank_file if out is None else out
    inputs = (*features, *(() if in_place else (bank_file,)))
    check_output(target, "--out", inputs=inputs, overwrite=overwrite or in_place)
    return target


def describe_bank(bank: MemoryBank, path: Path) -> dict[str, Any]:
    """Return what every command's JSON says of a bank."""
    return {
        "vectors": len(bank),
        "dim": bank.dim,
        "index": bank.index,
        "bank_precision": bank.bank_precision,
        "search": bank.metadata()["search"],
        "radius": bank.radius,
        "file_bytes": path.stat().st_size,
        "resident_bytes": bank.nbytes,
    }


def describe_bank_rows(bank: MemoryBank, path: Path) -> dict[str, str]:
    """Return the same for people."""
    rows = {
        "bank": f"{len(bank):,} × {bank.dim}, index {bank.index}, searched in precision {bank.bank_precision}",
        "file": size(path.stat().st_size),
        "radius": "unknown" if bank.radius is None else f"{bank.radius:.6g} (no row it was selected from is farther)",
    }
    if bank.stream is not None:
        seen, most = sum(source.rows for source in bank.sources), bank.stream.size
        best = bank.stream.optimum / (1.0 if bank.standardization is None else bank.standardization.std)
        rows["stream"] = (
            f"at most {most:,} vectors of {seen:,} rows seen; the best {most:,} have a radius of {best:.6g} or more"
        )
    if bank.projection is not None:
        rows["selected in"] = f"a random projection to {bank.projection.dim_out} dimensions"
    search = bank.metadata()["search"]
    if search is not None:
        names = {"nprobe": "lists per query (nprobe)", "ef_search": "candidates (ef_search)"}
        words = [f"{search[name]} {what}" for name, what in names.items() if search[name] is not None]
        recall = search["recall"]
        words.append("recall not measured" if recall is None else f"finds {recall:.1%} of a sample's nearest vectors")
        rows["search"] = ", ".join(words)
    if bank.standardization is not None:
        rows["standardized by"] = f"mean {bank.standardization.mean:.6g}, std {bank.standardization.std:.6g}"
    return rows
