"""The whole way, as a user goes it: text to a served model, through the command line and the official client."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import openai
import psutil
import pytest
import torch
from harness import Result, command, environment, free_port
from safetensors.torch import load_file

Slipway = Callable[..., Result]
ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "train", "export", "serve")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, job_file: Path, slipway: Slipway) -> tuple[Path, Result]:
    """`slipway run JOB --exit --json` from nothing."""
    store = tmp_path_factory.mktemp("run")
    return store, slipway(
        "run",
        job_file,
        "--store",
        store,
        "--exit",
        "--json",
        "--set",
        f"serve.port={free_port()}",
        WANDB_API_KEY="k" * 40,
    )


def test_one_json_document_tells_it_all(served: tuple[Path, Result]) -> None:
    store, result = served
    assert result.code == 0, result.stderr
    document = result.document
    assert set(document) == {
        "run", "dataset", "checkpoint", "export", "steps", "train_loss", "validation_loss", "tokens_per_s",
        "resumed_from_step", "samples", "stages",
    }  # fmt: skip
    assert document["stages"] == dict.fromkeys(STAGES, "done")
    assert (document["steps"], document["resumed_from_step"]) == (40, None)
    for name in ("run", "dataset", "checkpoint", "export"):
        assert (store / document[name]).is_dir()
    assert document["checkpoint"] == f"{document['run']}/checkpoints/step-00000040"
    assert document["samples"][0]["prompt"] == "the ship "
    assert document["samples"][0]["completion"]


def test_nothing_is_left_behind(served: tuple[Path, Result]) -> None:
    store, _ = served
    assert not [p for p in store.rglob("*") if ".tmp-" in p.name]
    ours = [p for p in psutil.process_iter(["cmdline"]) if str(store) in " ".join(p.info["cmdline"] or [])]
    assert not ours


def test_no_secret_is_written(served: tuple[Path, Result]) -> None:
    store, result = served
    secret = b"k" * 40
    assert not [p for p in store.rglob("*") if p.is_file() and secret in p.read_bytes()]
    assert secret.decode() not in result.stdout + result.stderr


def test_the_same_command_again_reuses_everything(
    served: tuple[Path, Result], job_file: Path, slipway: Slipway
) -> None:
    store, first = served
    again = slipway("run", job_file, "--store", store, "--until", "export", "--json", timeout_s=60).document
    assert again["stages"] == {"prepare": "reused", "train": "reused", "export": "reused", "serve": None}
    for name in ("run", "export", "train_loss", "validation_loss", "steps", "tokens_per_s"):
        assert again[name] == first.document[name]


def test_plan_and_runs_know_what_is_done(served: tuple[Path, Result], job_file: Path, slipway: Slipway) -> None:
    store, first = served
    stages = slipway("plan", job_file, "--store", store, "--json").document["stages"]
    assert [stages[s]["status"] for s in STAGES] == ["done", "done", "done", "todo"]
    assert stages["train"]["path"] == first.document["run"]
    changed = slipway("plan", job_file, "--store", store, "--json", "--set", "model.layers=3").document["stages"]
    assert [changed[s]["status"] for s in STAGES] == ["done", "todo", "todo", "todo"]
    (row,) = slipway("runs", "--store", store, "--json").document["runs"]
    assert (row["run"], row["state"], row["step"]) == (first.document["run"], "exported", 40)


def test_lineage_leads_from_the_export_to_the_raw_sources(
    served: tuple[Path, Result], job_file: Path, corpus: Path, slipway: Slipway
) -> None:
    store, first = served
    export = first.document["export"]
    found = slipway("lineage", export, "--store", store, "--json").document
    assert list(found) == ["export", "checkpoint", "run", "job", "commit", "dataset", "sources", "parents"]
    assert (found["export"], found["run"], found["parents"]) == (export, first.document["run"], [])
    assert found["checkpoint"] == f"{found['run']}/checkpoints/step-00000040"
    assert found["job"] == f"{found['run']}/job.yaml"
    here = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if here.returncode == 0:
        assert found["commit"].removesuffix("-dirty") == here.stdout.strip()
    files = {path.name: path.read_bytes() for path in corpus.iterdir()}
    assert {row["path"]: (row["bytes"], row["sha256"]) for row in found["sources"]} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }
    tuned = ("--set", f"train.from={store / found['run']}", "--set", f"data.tokenizer={{path: {tokenizer_of(store)}}}")
    prepared = slipway("prepare", job_file, "--store", store, *tuned, "--json").document
    (run,) = set((store / "runs").iterdir()) - {store / found["run"]}
    assert prepared["state"] == "done"
    shutil.copytree(store / export, run / "export" / Path(export).name)
    child = slipway("lineage", run, "--store", store, "--json").document
    (parent,) = child["parents"]
    assert parent == {**found, "export": None}
    shown = slipway("lineage", run, "--store", store).stdout
    assert "began with" in shown
    shutil.rmtree(run)


def tokenizer_of(store: Path) -> Path:
    (found,) = store.glob("datasets/*/tokenizer.json")
    return found


def test_transformers_opens_the_export_and_agrees(served: tuple[Path, Result]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store, result = served
    export = store / result.document["export"]
    probe = load_file(export / "probe.safetensors")
    model = AutoModelForCausalLM.from_pretrained(export)
    with torch.no_grad():
        logits = model(probe["input_ids"]).logits
    assert torch.allclose(logits, probe["trainer_logits"], atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.decode(tokenizer("the ship sails")["input_ids"]) == "the ship sails"


def test_detached_service_lives_until_it_is_stopped(served: tuple[Path, Result], slipway: Slipway) -> None:
    store, first = served
    port = free_port()
    started = slipway("serve", store / first.document["run"], "--port", port, "--detach", "--json")
    try:
        assert started.code == 0, started.stderr
        assert started.document["url"] == f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=started.document["url"], api_key="none") as client:
            answer = client.completions.create(model=started.document["model"], prompt="the crew ", max_tokens=8)
            assert answer.usage is not None
            assert answer.usage.completion_tokens <= 8
        services = slipway("serve", "--status", "--json").document["services"]
        assert port in [service["port"] for service in services]
        second = slipway("serve", store / first.document["run"], "--port", port, "--json")
        assert (second.code, second.document["version"], second.document["before"]) == (0, "v2", "v1"), second.stderr
    finally:
        stopped = slipway("serve", "--stop", "--port", port, "--json")
    assert stopped.code == 0, stopped.stderr
    gone = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    with gone, pytest.raises(openai.APIConnectionError):
        gone.models.list()


def test_an_altered_export_is_refused_naming_the_tensor(
    served: tuple[Path, Result], slipway: Slipway, tmp_path: Path
) -> None:
    import shutil

    store, first = served
    export = tmp_path / "altered"
    shutil.copytree(store / first.document["export"], export)
    weights = bytearray((export / "model.safetensors").read_bytes())
    weights[-3] ^= 0x40
    (export / "model.safetensors").write_bytes(weights)
    refused = slipway("serve", export, "--port", free_port(), "--detach", "--json", timeout_s=60)
    assert refused.code == 6
    assert "model.layers.1" in refused.stderr or "model.norm" in refused.stderr or "lm_head" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_in_the_foreground_serves_until_ctrl_c_whoever_has_keys(
    served: tuple[Path, Result], job_file: Path, slipway: Slipway, tmp_path: Path
) -> None:
    store, _ = served
    state = str(tmp_path / "state")
    key = slipway("keys", "create", "--name", "ana", "--json", XDG_STATE_HOME=state).document["key"]
    port = free_port()
    args = command("run", job_file, "--store", store, "--json", "--set", f"serve.port={port}")
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(XDG_STATE_HOME=state)
    ) as process:
        assert process.stdout is not None
        document = json.loads(process.stdout.readline())
        assert document["stages"]["serve"] == "done"
        assert document["samples"][0]["completion"]
        url = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=url, api_key=key) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
        with openai.OpenAI(base_url=url, api_key="none") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_a_port_in_use_is_said_before_anything_starts(job_file: Path, slipway: Slipway, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began_at = time.monotonic()
        result = slipway("run", job_file, "--store", tmp_path, "--exit", "--json", "--set", f"serve.port={port}")
    assert result.code == 7
    assert str(port) in result.document["error"]["message"]
    assert time.monotonic() - began_at < 10
    assert not list(tmp_path.iterdir())
