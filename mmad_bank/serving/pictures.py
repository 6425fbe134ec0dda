"""The door for pictures: files in; score, verdict, map, regions and the normal patches that explain them out."""

from __future__ import annotations

import base64
import io
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from mmad_bank._internal.shares import number_of
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.serving import schemas
from mmad_bank.serving.backend import Backend
from mmad_bank.serving.bodies import announced
from mmad_bank.serving.models import Answer, Card, Work
from mmad_bank.serving.problems import Problem
from mmad_bank.serving.training import TrainingImages, with_crops

if TYPE_CHECKING:
    from mmad_bank.data import Sample
    from mmad_bank.serving.method_models import Explained

_SPOOL = 1 << 16
_POINTS = {b"ply": ".ply", b"# .PCD": ".pcd", b"VERSION": ".pcd"}
_DEEP = 65535
KINDS = ("map", "overlay", "image", "nearest")
_Units = Literal["m", "cm", "mm", "um"]


@dataclass(frozen=True)
class _Asked:
    """What a request asks for beside the score."""

    kinds: tuple[str, ...]
    side: int | None
    explain: int
    rate: float | None
    units: str | None
    force: bool
    as_png: bool


def picture_routes(backend: Backend) -> APIRouter:
    """Return the route of pictures."""
    router = APIRouter(tags=["pictures"])
    png = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}

    @router.post(
        "/predict/{name}", openapi_extra=schemas.FILES_BODY,
        responses={
            200: {"model": schemas.PredictAnswer, **png}, **schemas.errors(400, 404, 413, 415, 422, 500, 503)
        },
    )  # fmt: skip
    async def predict(
        name: str,
        request: Request,
        pictures: Annotated[
            str, Query(description="Pictures to answer with, joined by commas: map, overlay, image, nearest; or none.")
        ] = "map",
        side: Annotated[
            int | None, Query(ge=16, le=16384, description="Longest side of these pictures; larger ones are shrunk.")
        ] = None,
        explain: Annotated[int, Query(ge=0, le=100, description="Number of normal patches to name.")] = 4,
        false_alarm_rate: Annotated[
            float | None,
            BeforeValidator(_share),
            Query(gt=0, lt=1, description="Share of normal images that may be called bad, such as 0.05 or 5%."),
        ] = None,
        units: Annotated[_Units | None, Query(description="Unit of the point cloud; default: the model's.")] = None,
        force: Annotated[bool, Query(description="Score what the model was not made for, too.")] = False,
    ) -> Response:
        """Score a picture, with its point cloud if the model needs one, or scattered points.

        With `Accept: image/png` the answer is the first of `pictures` alone, and the headers `Mmad-Score`,
        `Mmad-Verdict` and `Mmad-P-Value` say the rest.
        """
        known = [one.alias for one in request.scope["route"].dependant.query_params]
        for given in request.query_params:
            if given not in known:
                raise Problem(422, f"query: expected {', '.join(known)}, found {given[:40]!r}")
        as_png = "image/png" in request.headers.get("accept", "")
        asked = _Asked(_kinds(pictures, as_png), side, explain, false_alarm_rate, units, force, as_png)
        async with backend.admitted(name, announced(request, backend.settings.max_body)) as admission:
            card = await backend.in_time(backend.card(name), request.state.begin)
            if not card.takes_pictures:
                raise Problem(400, f"model: {name} is a bank, which takes features: POST /v2/models/{name}/infer")
            form = await _form(request, backend)
            try:
                begin = time.perf_counter()
                backend.metrics.section("reading", begin - request.state.begin)
                sample = await backend.in_thread(_sample, form, card, asked)
                backend.metrics.section("decoding", time.perf_counter() - begin)
            finally:
                await form.close()
            admission.holds(sum(one.untyped_storage().nbytes() for one in (sample.rgb, sample.xyz)))
            key = ("files", asked.rate, asked.force)
            options = {"rate": asked.rate, "force": asked.force, "explain": asked.explain}
            work = Work({"": sample}, key, 1, options)
            answer: Answer = await backend.while_there(request, backend.score(name, work))
            begin = time.perf_counter()
            until = request.state.begin + backend.settings.timeout
            response: Response = await backend.in_time(
                backend.in_thread(_response, name, answer.value, asked, backend.training, until), request.state.begin
            )
            backend.metrics.section("encoding", time.perf_counter() - begin)
        return response

    return router


def _share(value: Any) -> Any:
    """Return the number of a percentage; what is none is looked at by others.

    Example:
        >>> _share("5%"), _share("0.05"), _share("five%")
        (0.05, '0.05', 'five%')
    """
    if isinstance(value, str) and value.strip().endswith("%"):
        with suppress(ValueError):
            return number_of(value.strip())
    return value


def _kinds(words: str, as_png: bool) -> tuple[str, ...]:
    """Read which pictures are wanted.

    Raises:
        Problem: There is another one.
    """
    kinds = tuple(word.strip() for word in words.split(",") if word.strip() not in ("", "none"))
    for kind in kinds:
        if kind not in KINDS:
            raise Problem(422, f"pictures: expected some of {', '.join(KINDS)}, or none, found {kind[:40]!r}")
    if as_png and (not kinds or kinds[0] == "nearest"):
        expected = f"expected one of {', '.join(KINDS[:-1])} as image/png is wanted"
        raise Problem(422, f"pictures: {expected}, found {kinds[0] if kinds else 'none'}")
    return kinds


async def _form(request: Request, backend: Backend) -> FormData:
    """Read the files of a request.

    Raises:
        Problem: It is no form, or has other parts than files.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise Problem(415, f"Content-Type: expected multipart/form-data, found {kind[:60]!r}")
    try:
        form: FormData = await backend.in_time(request.form(max_files=2, max_fields=2), request.state.begin)
    except (MultiPartException, KeyError, ValueError, AttributeError) as error:
        words = " ".join(str(getattr(error, "message", error)).split())
        raise Problem(400, f"body: expected a form with files, found something else ({words[:80]})") from error
    except Exception as error:
        if getattr(error, "status_code", 500) >= 500:
            raise
        detail = getattr(error, "detail", error)
        raise Problem(400, f"body: expected a form with files, found something else ({str(detail)[:80]})") from error
    names = [name for name, _ in form.multi_items()]
    for name, one in form.multi_items():
        if names.count(name) > 1:
            raise Problem(
                400, f"body: expected one file {name[:40]}, found {names.count(name)}; send a request for each"
            )
        if name not in ("image", "depth") or not isinstance(one, UploadFile):
            raise Problem(400, f"body: expected the files image and depth, found {name[:40]!r}")
    return form


def _sample(form: FormData, card: Card, asked: _Asked) -> Sample:
    """Read a sample from the files of a request.

    Raises:
        Problem: A file is missing or cannot be read.
    """
    needs = set(card.facts["needs"])
    with tempfile.TemporaryDirectory(prefix="mmad-bank-serve-") as folder:
        files = {name: _saved(one, name, Path(folder)) for name, one in form.items() if isinstance(one, UploadFile)}
        image, depth = files.get("image"), files.get("depth")
        words = {"rgb": "image", "xyz": "depth"}
        missing = sorted(words[one] for one in needs if words[one] not in files)
        scattered = depth is not None and depth.suffix in _POINTS.values()
        if not files or (missing and not (scattered and image is None)):
            found = " and ".join(files) or "none"
            raise Problem(
                400, f"body: expected the files {' and '.join(words[one] for one in sorted(needs))}, found {found}"
            )
        try:
            with _in_the_clients_words(form, Path(folder)):
                return replace(_read(image, depth, asked.units), id=_id_of(form))
        except MmadBankError as error:
            raise Problem(400, str(error)) from error


def _read(image: Path | None, depth: Path | None, units: str | None) -> Sample:
    from mmad_bank.data import open_points, open_sample, read_rgb, read_xyz
    from mmad_bank.data.sample import in_metres
    from mmad_bank.serving.method_models import sample_of

    if depth is not None and depth.suffix in _POINTS.values():
        if image is not None:
            raise InputError(f"{depth}: expected a TIFF beside a picture, found scattered points, which go alone")
        return open_points(depth, units=units)
    if image is None:
        assert depth is not None
        return in_metres(sample_of(None, read_xyz(depth)), units)
    if depth is None:
        return sample_of(read_rgb(image), None)
    return replace(open_sample(image, depth, units=units), rgb_path=None, xyz_path=None)


def _saved(upload: UploadFile, name: str, folder: Path) -> Path:
    """Write a file under a name of our own, with the suffix that its first bytes ask for."""
    source = upload.file
    source.seek(0)
    start = source.read(8)
    suffix = next((known for mark, known in _POINTS.items() if start.startswith(mark)), ".tiff")
    path = folder / (f"{name}{suffix}" if name == "depth" else f"{name}.png")
    with path.open("wb") as target:
        target.write(start)
        while block := source.read(_SPOOL):
            target.write(block)
    return path


@contextmanager
def _in_the_clients_words(form: FormData, folder: Path) -> Iterator[None]:
    """Name files in errors as the client does."""
    try:
        yield
    except MmadBankError as error:
        text = str(error)
        for name, one in form.items():
            shown = _printable(one.filename if isinstance(one, UploadFile) else None)
            words = f"{name} ({shown})" if shown else name
            text = re.sub(rf"{re.escape(str(folder))}/{name}\.\w+", lambda _, words=words: words, text)  # type: ignore[misc]
        raise InputError(text) from None


def _printable(name: str | None) -> str:
    return "".join(letter for letter in (name or "") if letter.isprintable())[:100]


def _id_of(form: FormData) -> str:
    """Return the name of the picture's file, or else of the cloud's, without suffix."""
    for part in ("image", "depth"):
        one = form.get(part)
        if isinstance(one, UploadFile) and one.filename:
            return Path(_printable(one.filename).replace("\\", "/")).stem
    return ""


def _response(name: str, found: Explained, asked: _Asked, training: TrainingImages | None, until: float) -> Response:
    """Say what a method has found; after a time the answer is not waited for."""
    prediction = found.prediction
    if not asked.as_png:
        said = described(name, found)
        if "nearest" in asked.kinds:
            said["explanation"] = {
                part: with_crops(one, name, found.method, found.prediction, part, training, until)
                for part, one in found.explanation.items()
            }
        pictures = {kind: _as_json(kind, found, asked.side) for kind in asked.kinds if kind != "nearest"}
        return JSONResponse(said | {"pictures": pictures})
    png, low, high = _picture(asked.kinds[0], found, asked.side)
    said = {"Mmad-Score": repr(prediction.score), "Mmad-Low": repr(low), "Mmad-High": repr(high)}
    if prediction.verdict is not None:
        said |= {"Mmad-Verdict": prediction.verdict, "Mmad-P-Value": repr(prediction.p_value)}
    return Response(png, media_type="image/png", headers=said)


def described(name: str, found: Explained) -> dict[str, Any]:
    """Return what is said of a picture, JSON-able.

    Args:
        name: The model's name.
        found: What the model has found.
    """
    from mmad_bank.methods.described import verdict_of
    from mmad_bank.report.pictures import map_limits

    prediction = found.prediction
    values = prediction.map
    return {
        "model": name, "id": prediction.sample.id, "score": prediction.score, **verdict_of(prediction),
        "size": list(prediction.size), "notes": list(prediction.notes),
        "parts": {part: one.score for part, one in prediction.parts.items()},
        "map_range": [float(values.min()), float(values.max())],
        "map_scale": list(map_limits(found.method, [prediction])), "explanation": found.explanation,
    }  # fmt: skip


def _as_json(kind: str, found: Explained, side: int | None) -> dict[str, Any]:
    png, low, high = _picture(kind, found, side)
    return {"png": base64.b64encode(png).decode()} | ({"low": low, "high": high} if kind == "map" else {})


def _picture(kind: str, found: Explained, side: int | None) -> tuple[bytes, float, float]:
    """Return a picture as PNG, and the scores of a map's values 0 and 65535."""
    from mmad_bank.report.marks import Marks, annotated
    from mmad_bank.report.pictures import map_limits, rgb_picture

    prediction = found.prediction
    values = prediction.map.numpy()
    low, high = float(values.min()), float(values.max())
    if kind == "map":
        levels = (values.astype(np.float64) - low) / max(high - low, 1e-12) * _DEEP
        return _png(levels.round().astype(np.uint16), side), low, high
    picture = rgb_picture(prediction.original)
    if kind == "overlay":
        words = [f"{number}: {region.peak:.3g}" for number, region in enumerate(prediction.regions, 1)]
        picture = annotated(picture, values, map_limits(found.method, [prediction]), Marks.of(prediction, words))
    return _png(picture, side), low, high


def _png(values: np.ndarray, side: int | None) -> bytes:
    """Return a picture as PNG, with its longest side shrunk to ``side``."""
    from PIL import Image

    picture = Image.fromarray(values)
    if side is not None and max(picture.size) > side:
        factor = side / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        if values.dtype == np.uint16:  # Pillow does not average 16 bits
            small = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BOX)
            picture = Image.fromarray(np.asarray(small).round().clip(0, _DEEP).astype(np.uint16))
        else:
            picture = picture.resize(size, Image.Resampling.BOX)
    target = io.BytesIO()
    picture.save(target, "PNG", compress_level=3)
    return target.getvalue()
