"""What a request is answered with where it cannot be served: a status, and one line."""

from __future__ import annotations

from collections.abc import Mapping

from mmad_bank.errors import MmadBankError


class Problem(MmadBankError):
    """A request that cannot be served.

    Args:
        status: HTTP status.
        message: One line for whoever sent the request.
        headers: Headers of the answer.

    Example:
        >>> Problem(404, "model: found none called 'x'").status
        404
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = dict(headers or {})
        super().__init__(message)


def overloaded(message: str, seconds: int = 1) -> Problem:
    """Return the problem of a service that has too much to do; the client may come again.

    Example:
        >>> overloaded("too many").headers
        {'Retry-After': '1'}
    """
    return Problem(503, message, {"Retry-After": str(seconds)})
