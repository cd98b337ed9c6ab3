"""What a request may say, and how a wrong one is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.serve.api.chat import ChatRequest
from orchestrator.serve.api.completions import Choice, CompletionRequest, Logprobs, Usage, parse_completion_request
from orchestrator.serve.api.encoders import ClassifyRequest, EmbeddingRequest
from orchestrator.serve.api.errors import ApiError, context_exceeded, model_not_found
from orchestrator.serve.api.feedback import Feedback
from orchestrator.serve.api.request import Closed
from orchestrator.serve.api.request import parse as read

_FORMS = (CompletionRequest, ChatRequest, EmbeddingRequest, ClassifyRequest, Feedback)


def parse(**fields: Any) -> CompletionRequest:
    return parse_completion_request(json.dumps({"model": "m", **fields}).encode())


def test_defaults_are_openais() -> None:
    request = parse(prompt="hi")
    assert request.prompt == ["hi"]
    assert (request.max_tokens, request.temperature, request.top_p, request.n) == (None, 1.0, 1.0, 1)
    assert (request.stop, request.stream, request.echo, request.seed) == ((), False, False, None)


def test_null_is_the_default() -> None:
    names = set(CompletionRequest.model_fields) - {"model"}
    assert parse(**dict.fromkeys(names)) == parse()
    assert parse(suffix=None) == parse()


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("text", ["text"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_the_forms_of_a_prompt(given: Any, prompts: list[Any]) -> None:
    assert parse(prompt=given).prompt == prompts


@pytest.mark.parametrize(("given", "stops"), [("x", ("x",)), (["x", "yz"], ("x", "yz")), ([], ()), (None, ())])
def test_the_forms_of_stop(given: Any, stops: tuple[str, ...]) -> None:
    assert parse(stop=given).stop == stops


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "me"},
        {"presence_penalty": 0, "frequency_penalty": 0.0},
        {"logit_bias": {"5": -100, "6": 0.5}, "stop_token_ids": [5], "ignore_eos": True, "min_tokens": 2},
        {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.2},
        {"suffix": ""},
        {"best_of": 1},
        {"n": 2, "best_of": 2},
        {"max_tokens": 0, "echo": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"seed": -1},
        {"temperature": 2, "top_p": 1},
        {"stop": [str(i) for i in range(16)]},
    ],
)
def test_harmless_values_are_accepted(harmless: dict[str, Any]) -> None:
    assert parse(**harmless).model == "m"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": None}, "model", "you must provide a model parameter"),
        ({"model": 3}, "model", "model: Input should be a valid string, got 3"),
        ({"temperature": 2.1}, "temperature", "temperature: Input should be less than or equal to 2, got 2.1"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "temperature: Input should be a valid number, got 'hot'"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.01}, "top_p", "less than or equal to 1"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_tokens": "9"}, "max_tokens", "valid integer"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"n": 65, "prompt": ["a", "b"]}, "n", "n: asks for more than 128 choices over all prompts"),
        ({"best_of": 3}, "best_of", "best_of: must equal n"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ["x"] * 17}, "stop", "stop: has 17 texts; at most 16 are allowed"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": [1]}, "stop", "must be a text or a list of texts"),
        ({"prompt": []}, "prompt", "prompt: must be a text, token ids, or a list of these"),
        ({"prompt": [1, "a"]}, "prompt", "must be a text"),
        ({"prompt": [[]]}, "prompt", "must be a text"),
        ({"prompt": [True]}, "prompt", "must be a text"),
        ({"prompt": [-1]}, "prompt", "must be a text"),
        ({"prompt": 5}, "prompt", "must be a text"),
        ({"logprobs": 6}, "logprobs", "logprobs: Input should be less than or equal to 5, got 6"),
        ({"logprobs": -1}, "logprobs", "greater than or equal to 0"),
        ({"logprobs": True}, "logprobs", "logprobs: Input should be a valid integer, got True"),
        ({"suffix": "x"}, "suffix", "suffix: is not supported"),
        ({"presence_penalty": 2.5}, "presence_penalty", "less than or equal to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"min_p": 1.5}, "min_p", "less than or equal to 1"),
        ({"logit_bias": {"5": -101}}, "logit_bias", "logit_bias: has no number from -100 to 100 for token 5"),
        ({"logit_bias": {"5": True}}, "logit_bias", "no number"),
        ({"logit_bias": {"-5": 1}}, "logit_bias", "has '-5', which is no token id"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "which is no token id"),
        ({"logit_bias": [1]}, "logit_bias", "must be an object"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "stop_token_ids[0]: Input should be greater than or equal to 0"),
        ({"stop_token_ids": 5}, "stop_token_ids", "valid tuple"),
        ({"ignore_eos": 1}, "ignore_eos", "valid boolean"),
        ({"stop": "x" * 1001}, "stop", "more than 1000 characters"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when stream is true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "Unrecognized request argument"),
        ({"max_token": 5}, "max_token", "Unrecognized request argument supplied: max_token"),
    ],
)
def test_wrong_values_are_400_and_named(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    error = caught.value
    assert (error.status, error.param) == (400, param)
    assert message in error.message
    assert error.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"model": NaN}', b"\xff", b'{"prompt": "\\ud800"}', b"[" * 100_000],
    ids=["empty", "open", "nan", "not utf-8", "half a surrogate", "deep"],
)
def test_a_body_that_is_no_json_is_400(body: bytes) -> None:
    with pytest.raises(ApiError, match="could not parse the JSON body") as caught:
        parse_completion_request(body)
    assert caught.value.status == 400


_FIELDS = sorted({*CompletionRequest.model_fields, *CompletionRequest.UNSUPPORTED, "messages", "?"})
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(fields=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=4), form=st.sampled_from(_FORMS))
@settings(max_examples=300, deadline=None)
def test_no_value_of_any_field_is_more_than_a_400(fields: dict[str, Any], form: type[Closed]) -> None:
    error: ApiError | None = None
    try:
        read(form, json.dumps(fields).encode())
    except ApiError as refused:
        error = refused
    assert error is None or (error.status == 400 and len(error.message) < 600)


def test_a_body_that_is_no_object_is_400() -> None:
    with pytest.raises(ApiError, match="must be a JSON object"):
        parse_completion_request(b"[1]")


def test_a_huge_wrong_value_is_shortened() -> None:
    with pytest.raises(ApiError) as caught:
        parse(max_tokens="9" * 10_000)
    assert len(caught.value.message) < 200


def test_errors_have_openais_form() -> None:
    assert model_not_found("gpt", "tiny").body() == {
        "error": {
            "message": "The model `gpt` does not exist; this service has `tiny`",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    error = context_exceeded(context=64, prompt_tokens=60, max_tokens=16)
    assert error.code == "context_length_exceeded"
    assert error.message.startswith(
        "This model's maximum context length is 64 tokens, however you requested 76 tokens "
        "(60 in your prompt; 16 for the completion)."
    )
    assert ApiError("x", status=500).body()["error"]["type"] == "server_error"


@pytest.mark.parametrize("given", [None, 0, 1, 5])
def test_logprobs_are_a_number_of_alternatives(given: int | None) -> None:
    assert parse(logprobs=given).logprobs == given


def test_choices_are_joined_with_their_logprobs() -> None:
    def piece(text: str, token: str, at: int, reason: Any = None) -> Choice:
        logprobs = Logprobs(tokens=[token], token_logprobs=[-1.0], top_logprobs=[{token: -1.0}], text_offset=[at])
        return Choice(index=3, text=text, logprobs=logprobs, finish_reason=reason)

    choice = piece("ab", "ab", 0)
    choice.extend(piece("", " c", 2))
    choice.extend(piece(" c", "<|end|>", 4, "stop"))
    assert choice.model_dump() == {
        "index": 3,
        "text": "ab c",
        "logprobs": {
            "tokens": ["ab", " c", "<|end|>"],
            "token_logprobs": [-1.0, -1.0, -1.0],
            "top_logprobs": [{"ab": -1.0}, {" c": -1.0}, {"<|end|>": -1.0}],
            "text_offset": [0, 2, 4],
        },
        "finish_reason": "stop",
    }


def test_usage_adds_up() -> None:
    assert Usage.of(prompt_tokens=3, completion_tokens=4).total_tokens == 7
