"""What ``info`` says of no file of the user's: the machine, the networks' weights, and the methods' parameters."""

from __future__ import annotations

import re
from typing import Any

from mmad_bank.cli._output import emit
from mmad_bank.errors import InputError, did_you_mean


def say_system(as_json: bool) -> None:
    """Print what the machine and this build can run."""
    from mmad_bank import ops

    facts: dict[str, Any] = ops.system_info()
    versions = {name: version or "not installed" for name, version in facts["versions"].items()}
    rows = {name: _word(value) for name, value in {**facts, "versions": versions}.items()}
    emit(facts, rows, title="system", as_json=as_json)


def say_weights(as_json: bool) -> None:
    """Print where all weights come from and whether they are here."""
    from dataclasses import asdict

    from mmad_bank._internal import weights
    from mmad_bank.methods.weights import users

    facts, rows = [], {}
    for one in weights.TABLE:
        path, state = weights.place_of(one), weights.state_of(one)
        methods = list(users(one))
        facts.append({**asdict(one), "methods": methods, "path": path and str(path), "state": state})
        size_ = f"{'' if one.sha256 else 'about '}{weights.megabytes(one.n_bytes)}"
        rows[one.name] = "\n".join((
            state, f"{one.file}, {size_}, license: {one.license}", f"from {one.source}",
            f"for {', '.join(methods)}; a path by {' or '.join(one.arguments)}",
        ))  # fmt: skip
    emit({"weights": facts}, rows, title="weights (of the methods with * by default)", as_json=as_json)


def say_parameters(method: str, as_json: bool) -> None:
    """Print what is declared with a method's arguments, which --set takes."""
    from mmad_bank import methods

    if method not in methods.names():
        known = ", ".join(methods.names())
        raise InputError(
            f"parameters: expected one of {known}, found {method!r}{did_you_mean(method, methods.names())}"
        )
    facts, rows, bundled = [], {}, methods.method_class(method).bundled_arguments()
    for one in methods.parameters(method):
        told = {"name": one.name, "type": one.type, "default": one.default, "limits": one.limits}
        told["bundled"] = bundled.get(one.name, one.default)
        facts.append({**told, "choices": one.choices, "documentation": one.documentation, "former": one.former})
        default = as_setting(one.default)
        other = f", with --bundled {as_setting(told['bundled'])}" if told["bundled"] != one.default else ""
        limits = f" ({one.limits})" if one.limits else ""
        text = re.sub(r":\w+:`~?([^`]+)`", r"\1", one.documentation).replace("``", "")
        rows[one.name] = f"{one.type}{limits}, default {default}{other}\n{text}"
    emit({"method": method, "parameters": facts}, rows, title=f"parameters of {method}", as_json=as_json)


def as_setting(value: Any) -> str:
    """Return a value as ``fit --set`` takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(as_setting, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _word(value: Any) -> str:
    """Return a JSON value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "\n".join(f"{name.replace('_', ' ')}: {_word(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_word(item) for item in value) or "none"
    return str(value)
