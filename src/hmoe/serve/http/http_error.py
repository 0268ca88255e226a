"""Why a request is not answered, in the JSON that OpenAI's clients know."""

import json
from typing import Any

from hmoe.errors import HMoEError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class HTTPError(HMoEError):
    """Answers a request with an HTTP status of 400 or more, and says what is wrong.

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
        """Return the response's body: JSON of an object with the one field `error`."""
        return encode_response_json({"error": self.content()})

    def content(self) -> dict[str, str | None]:
        """Return what stands under `error`."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


def encode_response_json(content: Any) -> bytes:
    """Encode the content as compact JSON; NaN and infinity raise ValueError, because JSON has none."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="replace")  # half of a surrogate pair, which a path may hold, is not encodable
