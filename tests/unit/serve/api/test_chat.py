"""Chats over a real engine on a tiny model: the template, the forms of answers, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from orchestrator.serve.api.answer import Served
from orchestrator.serve.api.chat import ChatRequest, Message
from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.models import OneModel
from orchestrator.serve.api.request import parse
from orchestrator.serve.api.template import read_chat_format
from orchestrator.serve.engine.protocol import Piece

pytestmark = pytest.mark.anyio
TURN = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "héllo 🚢"}]


@pytest.fixture
async def client(client_of: Any, served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(OneModel(served)) as client:
        yield client


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": TURN, "seed": 1, "max_tokens": 9, **fields}
    )


async def events(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await ask(client, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    *lines, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_chat_is_read_as_transformers_reads_it(served: Served, chat_export: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(chat_export)
    want = theirs.apply_chat_template(TURN, add_generation_prompt=True, return_dict=False)
    assert served.chat is not None
    assert served.chat.ids(served.chat.text([Message.model_validate(each) for each in TURN])) == want


def test_the_end_of_a_turn_ends_the_answer(served: Served) -> None:
    assert served.chat is not None
    assert served.tokenizer.token_to_id("<|im_end|>") in served.chat.ends


async def test_the_turns_end_is_asked_of_the_engine(client_of: Any, scripted: Callable[..., Served]) -> None:
    model = scripted(Piece("hi", 1, "stop"))
    async with client_of(OneModel(model)) as client:
        await ask(client, stop_token_ids=[5])
        await ask(client, ignore_eos=True)
    first, second = model.engine.asked  # type: ignore[attr-defined]
    assert first.stop_token_ids == (model.tokenizer.token_to_id("<|im_end|>"), 5)
    assert second.stop_token_ids == ()


async def test_an_answer_has_openais_form(client: httpx.AsyncClient, served: Served) -> None:
    answer = (await ask(client)).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert (answer["model"], answer["system_fingerprint"]) == ("tiny", "fp_test")
    (choice,) = answer["choices"]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert choice["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 9
    assert served.chat is not None
    prompt = served.chat.ids(served.chat.text([Message.model_validate(each) for each in TURN]))
    assert answer["usage"]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["e", "🚢"]}])
async def test_a_stream_is_the_same_answer_in_pieces(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    whole = (await ask(client, **fields)).json()
    chunks = await events(client, **fields)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert (mine[-1]["delta"], mine[-1]["finish_reason"]) == ({}, choice["finish_reason"])
        assert all(c["finish_reason"] is None for c in mine[:-1])
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        if choice["logprobs"]:
            told = [t for c in mine if c["logprobs"] for t in c["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"]


async def test_a_stream_ends_with_the_usage_that_was_asked_for(client: httpx.AsyncClient) -> None:
    *chunks, last = await events(client, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 9)


async def test_logprobs_have_the_bytes_of_each_token(client: httpx.AsyncClient) -> None:
    (choice,) = (await ask(client, logprobs=True, top_logprobs=3, temperature=0.0)).json()["choices"]
    told = choice["logprobs"]["content"]
    assert len(told) == 9
    spelled = b"".join(bytes(token["bytes"]) for token in told)
    assert spelled.decode(errors="replace").startswith(choice["message"]["content"].rstrip("\ufffd"))
    for token in told:
        top = token["top_logprobs"]
        assert len(top) == 3
        assert top[0] == {key: token[key] for key in ("token", "logprob", "bytes")}  # greedy takes the likeliest
        assert [each["logprob"] for each in top] == sorted((each["logprob"] for each in top), reverse=True)


async def test_the_answer_may_fill_the_context_unless_asked_otherwise(
    client_of: Any, scripted: Callable[..., Served]
) -> None:
    model = dataclasses.replace(scripted(Piece("hi", 1, "stop")), max_tokens=64)
    async with client_of(OneModel(model)) as client:
        answer = (await ask(client, max_tokens=None)).json()
        assert (await ask(client, max_tokens=None, max_completion_tokens=3)).status_code == 200
    room, three = (sampling.max_tokens for sampling in model.engine.asked)  # type: ignore[attr-defined]
    assert room == 64 - answer["usage"]["prompt_tokens"]
    assert three == 3


async def test_an_answer_may_be_sent_back(client: httpx.AsyncClient) -> None:
    said = (await ask(client)).json()["choices"][0]["message"]
    messages = [*TURN, {**said, "content": "ok"}, {"role": "user", "content": "a"}]
    assert (await ask(client, messages=messages, max_tokens=1)).status_code == 200


def test_parts_and_the_new_name_of_system_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts, "name": "me"}]
    request = parse(ChatRequest, json.dumps({"model": "m", "messages": messages}).encode())
    assert [message.plain for message in request.messages] == [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages", "messages[0].content: Field required"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "an empty list is neither"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "reads text alone"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, "messages", "spells the special token <|im_end|>"),
        ({"messages": [{"role": "user", "content": "ship " * 99}]}, "messages", "maximum context length is 64"),
        ({"messages": [{"role": "user", "content": "x" * 999_999}]}, "messages", "No text of more than"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "say different things"),
        ({"top_logprobs": 2}, "top_logprobs", "only allowed when logprobs is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"logprobs": 1}, "logprobs", "valid boolean"),
        ({"tools": [{"type": "function"}]}, "tools", "is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not supported"),
        ({"store": 0}, "store", "is not supported"),
        ({"prompt": "x"}, "prompt", "Unrecognized request argument"),
    ],
)
async def test_wrong_chats_are_400_and_named(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = await ask(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


async def test_a_model_without_a_template_says_so(client_of: Any, served: Served) -> None:
    async with client_of(OneModel(dataclasses.replace(served, chat=None))) as client:
        answer = await ask(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")


def test_a_template_that_refuses_a_chat_is_a_400(chat_export: Path, served: Served, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    chat = read_chat_format(tmp_path, served.tokenizer)
    assert chat is not None
    with pytest.raises(ApiError, match="roles must alternate") as caught:
        chat.text([Message(role="user", content="x")])
    assert caught.value.status == 400


def test_an_export_without_a_template_has_no_chat_format(served: Served, tmp_path: Path) -> None:
    assert read_chat_format(tmp_path, served.tokenizer) is None
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "bos_token": {"content": "x"}}))
    chat = read_chat_format(tmp_path, served.tokenizer)
    assert chat is not None
    assert chat.text([Message(role="user", content="hi")]) == "hi"
