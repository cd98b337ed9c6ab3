"""lm-eval opens an export as it is, and finds the numbers that our own network gives; and asks a service the same.

It has an environment of its own (docs/evaluation.md): SLIPWAY_LM_EVAL names its `lm_eval`, else the one on the PATH is
taken, and without any this is skipped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import tiny_export

from orchestrator.export.prove import ProvenModel, load_proven
from orchestrator.job import Serve
from orchestrator.serve.host import detached
from orchestrator.serve.host.processes import HOST

LM_EVAL = os.environ.get("SLIPWAY_LM_EVAL") or shutil.which("lm_eval")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(LM_EVAL is None, reason="lm_eval is not installed; SLIPWAY_LM_EVAL may name it"),
]
QUESTIONS: list[dict[str, Any]] = [
    {"question": "def add(a, b):\n    return a", "choices": [" + b", " pass"], "answer": 0},
    {"question": "class Ship:", "choices": ["\n    return a", "\n    pass"], "answer": 1},
    {"question": "héllo", "choices": [" wörld", " Ship and emoji"], "answer": 0},
]
TEXTS = ["def add(a, b):\n    return a + b\n", "héllo wörld, 漢字 and emoji\n"]
CHOICE = """\
task: ships_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITE = """\
task: ships_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n", "JJJJ", ".", "1", "2", "3"], max_gen_toks: 16, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """\
task: ships_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


def write_task(folder: Path, name: str, template: str, rows: list[dict[str, Any]]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(template.format(data=data))


def log_probability(proven: ProvenModel, before: list[int], ids: list[int]) -> float:
    with torch.inference_mode():
        logits = proven.model(torch.tensor([before + ids]))[0, len(before) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())


def of_choice(proven: ProvenModel, question: str, choice: str) -> float:
    whole, context = (proven.tokenizer.encode(text).ids for text in (question + choice, question))
    return log_probability(proven, context, whole[len(context) :])


@dataclass(frozen=True)
class Found:
    """What one run of lm-eval wrote."""

    metrics: dict[str, dict[str, float]]
    folder: Path

    def answers(self, task: str) -> list[list[Any]]:
        """The model's answers to each question, in the order of the questions."""
        (samples,) = self.folder.rglob(f"samples_{task}_*.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        return [[answer[0] for answer in row["resps"]] for row in rows]


def run_lm_eval(folder: Path, name: str, *model: str) -> Found:
    args = [str(LM_EVAL), *model, "--tasks", "ships_choice,ships_text,ships_write", "--include_path", str(folder)]
    args += ["--log_samples", "--output_path", str(folder / name)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        args, capture_output=True, text=True, timeout=500, check=False, env={**os.environ, **offline}, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / name).rglob("results_*.json")
    return Found(json.loads(results.read_text())["results"], folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm-eval")
    write_task(folder, "choice", CHOICE, QUESTIONS)
    write_task(folder, "rolling", ROLLING, [{"text": text} for text in TEXTS])
    write_task(folder, "write", WRITE, QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def export(folder: Path) -> Path:
    export: Path = tiny_export(folder)
    return export


@pytest.fixture(scope="module")
def on_the_export(folder: Path, export: Path) -> Found:
    model_args = f"pretrained={export},dtype=float32"
    return run_lm_eval(folder, "out-hf", "--model", "hf", "--model_args", model_args, "--device", "cpu")


def test_its_numbers_are_ours(export: Path, on_the_export: Found) -> None:
    proven = load_proven(export)
    right = 0
    for answers, asked in zip(on_the_export.answers("ships_choice"), QUESTIONS, strict=True):
        ours = [of_choice(proven, asked["question"], choice) for choice in asked["choices"]]
        assert [float(answer[0]) for answer in answers] == pytest.approx(ours, abs=1e-3)
        right += ours.index(max(ours)) == asked["answer"]
    assert on_the_export.metrics["ships_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))

    # A text without a token before it begins after the end of another.
    nats = sum(log_probability(proven, [proven.eos_id], proven.tokenizer.encode(text).ids) for text in TEXTS)
    bits = -nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert on_the_export.metrics["ships_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)


@pytest.fixture(scope="module")
def url(export: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(export.parent / "state"))
        yield detached.start_detached(export, settings=Serve(), model_name="tiny", port=port)["url"]
        detached.stop(port)


def test_a_service_gives_the_numbers_of_its_export(folder: Path, export: Path, url: str, on_the_export: Found) -> None:
    model_args = f"model=tiny,base_url={url}/completions,tokenizer={export},max_length=64,num_concurrent=2"
    model = ["--model", "local-completions", "--model_args", model_args, "--batch_size", "2"]
    served = run_lm_eval(folder, "out-served", *model)
    for task, metric in [("ships_choice", "acc,none"), ("ships_text", "bits_per_byte,none")]:
        assert served.metrics[task][metric] == pytest.approx(on_the_export.metrics[task][metric], abs=1e-3)
    for ours, theirs in zip(served.answers("ships_choice"), on_the_export.answers("ships_choice"), strict=True):
        assert [float(answer[0]) for answer in ours] == pytest.approx([float(a[0]) for a in theirs], abs=1e-3)
        assert [answer[1] for answer in ours] == [answer[1] for answer in theirs]  # whether it is the likeliest
    assert served.answers("ships_write") == on_the_export.answers("ships_write")
