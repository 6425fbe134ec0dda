"""The command that says what is there: banks, saved models, data sets, the machine, the networks' weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.file_names import BANKS, MODEL
from mmad_bank._internal.folders import read_folder, recover_folder
from mmad_bank._internal.manifest import Manifest
from mmad_bank._internal.terminal import printable
from mmad_bank.cli._command import add
from mmad_bank.cli._data_facts import describe_data, is_dataset
from mmad_bank.cli._known import as_setting, say_parameters, say_system, say_weights
from mmad_bank.cli._options import Json
from mmad_bank.cli._output import emit, end, size
from mmad_bank.cli._part_facts import describe_part
from mmad_bank.cli._verdicts import (
    FIT_ANEW,
    calibration_facts,
    calibration_rows,
    model_calibration_facts,
    warn_if_outdated,
    words_of_model_calibration,
)
from mmad_bank.cli._words import option
from mmad_bank.cli.bank import describe_bank, describe_bank_rows
from mmad_bank.errors import FormatError, InputError, MmadBankError, NoneUsableError

if TYPE_CHECKING:
    from mmad_bank.bank import MemoryBank
    from mmad_bank.methods.shareable import TrainedOn

_LISTED = 5
_BANKS = "banks"  # a model's folder of banks
_NOT_SETTINGS = ("device", "seed")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, info)


def info(
    place: Annotated[
        Path | None,
        typer.Argument(
            metavar="BANK|MODEL|DATASET",
            help="Bank file, file of train-uff, train-adaptors or train-sdf, folder of several banks (MultiBank), of a"
            " model, of a model per category, of a data set.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[bool, option("--verify")] = False,
    system: Annotated[bool, option("--system")] = False,
    weights: Annotated[bool, option("--weights")] = False,
    parameters: Annotated[str | None, option("--parameters", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Describe a bank, several banks, a model, one model per category, a data set; or the machine, weights, a method.

    Every model in a folder of one per category gets a line. Those that cannot be read are named, and the exit code is
    then 3.
    """
    asked = sum(map(bool, (place is not None, system, weights, parameters is not None)))
    if asked != 1:
        found = "several" if asked else "none"
        raise InputError(
            f"BANK, MODEL or DATASET, --system, --weights and --parameters: expected one of them, found {found}"
        )
    if weights:
        say_weights(as_json)
    elif parameters is not None:
        say_parameters(parameters.lower(), as_json)
    elif place is None:
        say_system(as_json)
    else:
        _say_place(place, verify, as_json)


def _say_place(place: Path, verify: bool, as_json: bool) -> None:
    """Print what a file or a folder holds."""
    recover_folder(place)
    if not place.is_dir():
        _say_file(place, verify, as_json)
    elif (place / MODEL).is_file():
        facts, rows = describe_model(place, verify)
        emit(facts, rows, title=str(place), as_json=as_json)
    elif (place / BANKS).is_file():
        _say_banks(place, verify, as_json)
    elif not (models := sorted(path.parent for path in place.glob(f"*/{MODEL}"))) and is_dataset(place):
        facts, rows = describe_data(place)
        emit(facts, rows, title=str(place), as_json=as_json)
    else:
        _say_models(place, models, verify, as_json)


def _say_file(path: Path, verify: bool, as_json: bool) -> None:
    """Print what a file holds: a bank, or a part that models share."""
    try:
        _say_bank(path, verify, as_json)
    except FormatError:
        found = describe_part(path)
        if found is None:
            raise
        facts, rows = found
        emit(facts, rows, title=str(path), as_json=as_json)


# Banks.


def _say_bank(path: Path, verify: bool, as_json: bool) -> None:
    from mmad_bank.bank import MemoryBank
    from mmad_bank.features.factory import in_words

    bank = MemoryBank.load(path, verify=verify)
    result = {"bank": str(path), "verified": verify, **bank.metadata(), **describe_bank(bank, path)}
    calibration = bank.calibration
    warn_if_outdated(path, calibration is not None and calibration.outdated)
    result["calibration"] = None if calibration is None else calibration_facts(calibration)
    calibrated = {"calibration": "none, mmad-bank calibrate makes one"}
    rows = {
        **describe_bank_rows(bank, path),
        **(calibrated if calibration is None else calibration_rows(calibration)),
        "extractor": in_words(bank.extractor or "not recorded"),
        "sources": _describe_sources(bank),
        "checksums": "header and data agree" if verify else "header agrees (--verify checks the data)",
    }
    emit(result, rows, title=str(path), as_json=as_json)


def _say_banks(folder: Path, verify: bool, as_json: bool) -> None:
    """Print what a MultiBank's folder holds."""
    banks = read_folder(folder, lambda: _read_banks(folder, verify))
    n_bytes = sum(facts["file_bytes"] for facts in banks.values())
    rows = {name: _word_bank(facts) for name, facts in banks.items()}
    rows["files"] = size(n_bytes)
    rows["checksums"] = "headers and data agree" if verify else "headers agree (--verify checks the data)"
    result = {"banks": banks, "bytes": n_bytes}
    emit({"folder": str(folder), "verified": verify, **result}, rows, title=f"{folder}: banks", as_json=as_json)


def _read_banks(folder: Path, verify: bool) -> dict[str, dict[str, Any]]:
    """Return what is said of each bank in a folder."""
    from mmad_bank.bank import MultiBank
    from mmad_bank.bank.multi_bank import bank_files

    files = bank_files(folder)
    return {
        name: {**bank.metadata(), **describe_bank(bank, files[name])}
        for name, bank in MultiBank.load(folder, verify=verify).items()
    }


def _word_bank(facts: Mapping[str, Any]) -> str:
    """Return a bank in words, in one line."""
    from mmad_bank.features.factory import in_words

    extractor = in_words(facts["extractor"] or "extractor not recorded")
    shape = f"{facts['vectors']:,} × {facts['dim']:,}"
    return f"{shape}, index {facts['index']}, {size(facts['file_bytes'])}, {extractor}"


def _describe_sources(bank: MemoryBank) -> str:
    """Name the files that a bank's vectors came from and their images, the first few if there are many."""
    lines = []
    for source in bank.sources[:_LISTED]:
        words = [f"{source.rows:,} rows"]
        if source.patches:
            words.append(f"{source.images:,} images of {source.patches}")
        if source.grid is not None:
            words.append(f"grid {source.grid[0]} × {source.grid[1]}")
        if source.names is not None:
            more = ", …" if source.images > _LISTED else ""
            words.append(f"names {', '.join(source.names[:_LISTED])}{more}")
        lines.append(printable(f"{source.file} ({', '.join(words)})"))
    if len(bank.sources) > _LISTED:
        lines.append(f"and {len(bank.sources) - _LISTED} more")
    return "\n".join(lines)


# Models.


def _say_models(folder: Path, models: list[Path], verify: bool, as_json: bool) -> None:
    """Print a line of each model in a folder of one per category."""
    if not models:
        raise InputError(
            f"{folder}: expected a bank file, a folder of banks ({BANKS}), a saved model ({MODEL}), one per category,"
            " or a data set, found none of them"
        )
    read: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for model in models:
        try:
            read[model.name], _ = describe_model(model, verify)
        except MmadBankError as error:
            left_out[model.name] = str(error)
    if not read:
        raise NoneUsableError("", left_out)
    rows = {name: _word_model(facts) for name, facts in read.items()} | _shared_rows(read)
    facts = {"folder": str(folder), "models": read, "left_out": left_out}
    emit(facts, rows, title=f"{folder}: {len(read)} model{'s' * (len(read) != 1)}", as_json=as_json)
    end(left_out)


def describe_model(folder: Path, verify: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """Describe a saved model by its manifest and its banks' headers; no network is made, and nothing in it is run.

    Args:
        folder: Folder of the model.
        verify: Whether to compare all files and banks with their checksums, not only sizes and headers.

    Returns:
        JSON-able values, and the same for people.

    Raises:
        InputError: There is no model.
        FormatError: It is damaged, foreign or newer.
    """

    def read() -> tuple[dict[str, Any], dict[str, str]]:
        with decoding(folder, "altered or of another version, it cannot be described", error=FormatError):
            facts = _read_model(folder, verify)
            return facts, _model_rows(facts)

    return read_folder(folder, read)


def _read_model(folder: Path, verify: bool) -> dict[str, Any]:
    from mmad_bank.methods.model_folder import blaming_manifest, read_manifest, verify_files
    from mmad_bank.methods.verdicts import FUSED

    manifest = Manifest(str(folder / MODEL), read_manifest(folder))
    listed = manifest.optional_table("files")
    verify_files(folder, listed.content if listed else {}, contents=verify)
    banks = _read_banks(folder / _BANKS, verify) if (folder / _BANKS).is_dir() else {}
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files_of(folder, listed)}
    arguments = manifest.table("arguments").content
    samples, scale = manifest.texts("train_ids"), manifest.optional_table("map_scale")
    scales = scale.table("quantiles").content if scale else {}
    with blaming_manifest(folder):
        calibration = model_calibration_facts(manifest.content.get("calibration"), arguments.get("false_alarm_rate"))
    outdated = any(len(bank["sources"]) > 1 for bank in banks.values())  # as Method.calibration_outdated
    warn_if_outdated(folder, calibration is not None and outdated, FIT_ANEW)
    return {
        "model": str(folder),
        "verified": verify,
        "method": manifest.text("method"),
        "settings": _settings(manifest.text("method"), arguments),
        "arguments": arguments,
        "preprocessing": manifest.table("preprocessing").content,
        "roi": _region(manifest),
        "categories": _categories(manifest, samples),
        "trained_on": {name: one.as_json() for name, one in _trained_on(manifest).items()},
        "calibration": None if calibration is None else {**calibration, "outdated": outdated},
        "images": len(samples),
        "train_ids": samples,
        "skipped": manifest.texts_by_name("skipped"),
        "parts": list(banks) or [name for name in scales if name != FUSED],
        "banks": banks,
        "files": files,
        "bytes": sum(files.values()),
    }


def _files_of(folder: Path, listed: Manifest | None) -> Iterator[Path]:
    """Yield a model's files: those that it lists, its banks', and all weights where an old one lists none."""
    from mmad_bank.bank.multi_bank import bank_files

    yield folder / MODEL
    yield from (folder / name for name in listed.content) if listed else sorted(folder.glob("*.safetensors"))
    if (folder / _BANKS).is_dir():
        yield from bank_files(folder / _BANKS).values()


def _categories(manifest: Manifest, samples: list[str]) -> list[str]:
    """Return the categories that a model was fitted on; older ones name them in their samples' ids only."""
    from mmad_bank.data.names import category_of

    if "categories" in manifest.content:
        return manifest.texts("categories")
    return sorted({category_of(name) for name in samples} - {""})


def _region(manifest: Manifest) -> str | None:
    """Return a model's region of interest in words; None if it has none."""
    from mmad_bank.data import RegionOfInterest

    found = manifest.optional_table("roi")
    return None if found is None else RegionOfInterest.from_json(found.content).in_words()


def _trained_on(manifest: Manifest) -> dict[str, TrainedOn]:
    """Return what a model's shareable parts were trained on, as far as it says."""
    from mmad_bank.methods.shareable import TrainedOn

    found = manifest.optional_table("trained_on")
    return {name: TrainedOn.from_json(one, manifest.place) for name, one in found.content.items()} if found else {}


def _settings(method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from the method's defaults; all of a method that this version does not have."""
    from mmad_bank.methods import method_class, names

    if method not in names():
        return dict(arguments)
    defaults = {
        name: None if one.default is one.empty else json.loads(json.dumps(one.default))
        for name, one in inspect.signature(method_class(method)).parameters.items()
    }
    return {
        name: value
        for name, value in arguments.items()
        if name not in _NOT_SETTINGS and (name not in defaults or value != defaults[name])
    }


def _model_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what is said of a model, for people."""
    from mmad_bank.methods import names

    unknown = "" if facts["method"] in names() else "  (this version has no such method)"
    arguments, verified = facts["arguments"], facts["verified"]
    settings = [f"{name}={as_setting(value)}" for name, value in facts["settings"].items()]
    rows = {
        "method": f"{facts['method']}{unknown}",
        "settings": "\n".join(map(printable, settings)) if settings else "the method's defaults",
        "extractors": "\n".join(map(printable, _extractors(arguments))),
        "fitted on": _word_samples(facts),
        "region of interest": facts["roi"] or "",
        "calibrated on": "\n".join(words_of_model_calibration(facts["calibration"])),
        "trained on": "\n".join(
            printable(f"{name}: {_counted_images(one)}") for name, one in facts["trained_on"].items()
        ),
        "parts": ", ".join(facts["parts"]),
        "banks": "\n".join(printable(f"{name}: {_word_bank(bank)}") for name, bank in facts["banks"].items()),
        "pictures": f"{facts['preprocessing'].get('size', '?')} pixels per side, background"
        f" {facts['preprocessing'].get('background', '?')}",
        "files": "\n".join(
            [*(f"{printable(name)}, {size(n)}" for name, n in facts["files"].items()), f"{size(facts['bytes'])} in all"]
        ),
        "checksums": f"list of contents, files{' and banks' if facts['banks'] else ''} agree"
        if verified
        else f"list of contents{' and headers of banks' if facts['banks'] else ''} agree, files have their sizes"
        " (--verify checks the data)",
    }
    return {name: value for name, value in rows.items() if value}


def _word_model(facts: Mapping[str, Any]) -> str:
    """Return a model in words, in one line."""
    banks = ", ".join(f"{name} {bank['vectors']:,} × {bank['dim']:,}" for name, bank in facts["banks"].items())
    words = [facts["method"], f"fitted on {_word_samples(facts)}", *([f"banks {banks}"] if banks else [])]
    return "; ".join([*words, size(facts["bytes"])])


def _shared_rows(read: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a line for each part that models share, or have of their own, with what it was trained on."""
    models: dict[tuple[str, str], list[str]] = {}
    for name, facts in read.items():
        for part, one in facts["trained_on"].items():
            models.setdefault((part, _counted_images(one)), []).append(name)
    lines = [
        printable(f"{part if len(names) == len(read) else f'{part} of ' + ', '.join(names)}: {images}")
        for (part, images), names in models.items()
    ]
    return {"trained on": "\n".join(lines)} if lines else {}


def _word_samples(facts: Mapping[str, Any]) -> str:
    left_out = f", {len(facts['skipped']):,} left out" if facts["skipped"] else ""
    return f"{_counted_images(facts)}{left_out}"


def _counted_images(facts: Mapping[str, Any]) -> str:
    of = f" of {', '.join(facts['categories'])}" if facts["categories"] else ""
    return f"{facts['images']:,} images{of}"


def _extractors(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Name the extractors of the modalities that a model looks at, and where their weights came from."""
    banks = arguments.get("banks")
    for name in ("rgb", "xyz"):
        used = not isinstance(banks, list) or name in banks or "fusion" in banks
        if used and name in arguments:
            weights = "" if arguments[name] == "fpfh" else f", weights {arguments.get(f'{name}_weights')}"
            yield f"{name}: {arguments[name]}{weights}"
