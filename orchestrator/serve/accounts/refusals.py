"""Why somebody is not let in, as OpenAI's clients understand it."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.serve.accounts.keys import Key
from orchestrator.serve.accounts.ledger import Asked, Denied
from orchestrator.serve.accounts.limits import Lack, refusal_headers
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.request import shortened

# Basic, because browsers ask for a password then; and alone, because some of them read no second offer.
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="slipway", charset="UTF-8"'}
_HOW = "Give it as `Authorization: Bearer KEY`, or as the password of HTTP Basic."


def unauthorized(code: str, message: str) -> ApiError:
    """401."""
    return ApiError(message, status=401, code=code, headers=_CHALLENGE)


def no_key() -> ApiError:
    """401: no key at all."""
    return unauthorized("missing_api_key", f"You didn't provide an API key. {_HOW}")


def wrong_key() -> ApiError:
    """401: nobody's key. It is not repeated: it may be a key of something else."""
    return unauthorized("invalid_api_key", f"Incorrect API key provided. {_HOW}")


def dead_key(key: Key, why: str) -> ApiError:
    """401: a key that was good once."""
    return unauthorized(f"{why}_api_key", f"The API key `{key.name}` ({key.id}) is {why}.")


def forbidden(message: str, code: str) -> ApiError:
    """403."""
    return ApiError(message, status=403, code=code)


def refusal(denied: Denied, asked: Asked) -> ApiError:
    """What a client is told whose request was not let in."""
    key, why = denied.key, denied.why
    if isinstance(why, Lack):
        return _too_much(denied, why, asked)
    if why in ("revoked", "expired"):
        return dead_key(key, why)
    if why == "scope":
        return wrong_scope(key.name, key.scopes, asked.scope)
    if why == "model":
        return wrong_model(key.name, key.models or (), asked.model)
    return forbidden(
        f"The API key `{key.name}` may not ask the model `{asked.model}`: the key has a budget, and the model has no "
        "price to count with",
        "model_without_price",
    )


def wrong_scope(name: str, scopes: Iterable[str], asked: str) -> ApiError:
    """403: a key of other scopes."""
    has = ", ".join(sorted(scopes))
    return forbidden(f"The API key `{name}` may not be used to {asked}; its scopes are: {has}", "insufficient_scope")


def wrong_model(name: str, models: Iterable[str], asked: str) -> ApiError:
    """403: a key for other models."""
    has = ", ".join(f"`{model}`" for model in sorted(models))
    shown = shortened(asked).strip("'")
    return forbidden(
        f"The API key `{name}` may not ask the model `{shown}`; its models are: {has}", "model_not_allowed"
    )


def _too_much(denied: Denied, lack: Lack, asked: Asked) -> ApiError:
    key = denied.key
    headers = {**denied.headers, **refusal_headers(denied.wait_s, never=lack.never)}
    if lack.over_budget:
        rest = "it is spent" if lack.never else "requests under way may need the rest of it"
        message = f"The budget of the API key `{key.name}` does not cover this request: {rest}."
        return ApiError(message, status=429, code="insufficient_quota", headers=headers, kind="insufficient_quota")
    if lack.never:
        message = (
            f"The request is too large for the API key `{key.name}`: it may take {asked.tokens} tokens "
            f"({asked.prompt_tokens} in your prompt; {asked.max_tokens} for the completion), the limit is {key.tpm} "
            "in any minute. Reduce your prompt or max_tokens."
        )
        return ApiError(message, status=429, code="rate_limit_exceeded", headers=headers, kind="tokens")
    limits = [f"{key.rpm} requests"] * bool(lack.requests) + [f"{key.tpm} tokens"] * bool(lack.tokens)
    message = (
        f"Rate limit reached for the API key `{key.name}`: {' and '.join(limits)} in any minute. "
        f"Please try again in {denied.wait_s:.3g}s."
    )
    kind = "requests" if lack.requests else "tokens"
    return ApiError(message, status=429, code="rate_limit_exceeded", headers=headers, kind=kind)
