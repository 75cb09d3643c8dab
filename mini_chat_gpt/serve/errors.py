"""Errors of the API, in the form of OpenAI's: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

INVALID, AUTHENTICATION, RATE, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)
RETRY_AFTER = 2
"""Seconds after which a client may try again."""


class APIError(Exception):
    """A response other than the one that was requested. `status` is that of HTTP."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = {"Retry-After": str(RETRY_AFTER)} if retry else {}

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
