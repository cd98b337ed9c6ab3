"""What a tracker may be told: nothing secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.job import JobSpec
from orchestrator.track.tracker import NoTracker, redact


@pytest.mark.parametrize("name", ["api_key", "token", "auth_token", "AUTH_TOKEN", "password", "client_secret", "key"])
def test_what_sounds_secret_is_replaced(name: str) -> None:
    assert redact({"a": [{name: "hush"}], name: "hush"}) == {"a": [{name: "[redacted]"}], name: "[redacted]"}
    assert redact({name: ["hush", "hush"]}) == {name: ["[redacted]", "[redacted]"]}


@pytest.mark.parametrize("name", ["batch_tokens", "tokenizer", "max_tokens", "monkey", "keyboard", "tokens"])
def test_what_only_looks_alike_stays(name: str) -> None:
    assert redact({name: "seen"}) == {name: "seen"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://user:hush@host/path?q=1", "https://[redacted]@host/path?q=1"),
        ("s3://key:hu@sh@bucket/x", "s3://[redacted]@bucket/x"),
        ("https://host/path", "https://host/path"),
        ("me@host", "me@host"),
        ("${env:DATA}/x", "${env:DATA}/x"),
    ],
)
def test_a_url_loses_its_password(value: str, shown: str) -> None:
    assert redact({"path": value}) == {"path": shown}


def test_a_job_without_secrets_stays_whole(tiny_job: Callable[..., JobSpec]) -> None:
    config = tiny_job().model_dump(mode="json")
    assert redact(config) == config


@pytest.mark.parametrize("value", [3, 2.5, True, None])
def test_numbers_stay(value: Any) -> None:
    assert redact({"steps": value}) == {"steps": value}


def test_tracking_nothing_takes_everything(tmp_path: Path) -> None:
    tracker = NoTracker()
    tracker.log({})
    tracker.table("classes", ["label", "f1"], [["a", 0.5]], step=1)
    tracker.used_dataset(tmp_path, {})
    tracker.made_export(tmp_path, {})
    tracker.summarize({})
    tracker.alert("failed", "why")
    tracker.close()
