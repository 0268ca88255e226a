"""Why a request is not answered, in the shape OpenAI's clients know."""

import json
from typing import Any

from hmoe.errors import HMoEError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(HMoEError):
    """An HTTP status of 400 or more, with what is wrong.

    Attributes:
        status: HTTP status.
        message: one sentence for whoever wrote the request.
        param: name of the field at fault.
        code: a word for programs.
        headers: for the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> bytes:
        """JSON of it."""
        return to_json({"error": self.content()})

    def content(self) -> dict[str, str | None]:
        """What stands under `error`."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


def to_json(content: Any) -> bytes:
    """Compact JSON; NaN raises ValueError."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="replace")  # a lone surrogate of a path
