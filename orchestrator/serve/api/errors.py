"""What a client did wrong, in the form that OpenAI's clients turn into exceptions. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A refused request: an HTTP status and OpenAI's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        """`kind` is OpenAI's `type`, of refusals that its clients tell apart by it; None: the status says enough."""
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """The JSON document of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def model_not_found(asked: str, *served: str) -> ApiError:
    """404: another model than those served here."""
    shown = asked if len(asked) <= 80 else asked[:77] + "..."
    has = ", ".join(f"`{name}`" for name in served) or "none"
    return ApiError(
        f"The model `{shown}` does not exist; this service has {has}",
        status=404,
        param="model",
        code="model_not_found",
    )


def context_exceeded(*, context: int, prompt_tokens: int, max_tokens: int, param: str = "prompt") -> ApiError:
    """400 in OpenAI's words: prompt and completion do not fit into the model's context."""
    return ApiError(
        f"This model's maximum context length is {context} tokens, however you requested "
        f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in your prompt; {max_tokens} for the "
        "completion). Please reduce your prompt; or completion length.",
        param=param,
        code="context_length_exceeded",
    )
