"""lm-eval opens an export as it is, and finds the numbers that our own network gives.

It has an environment of its own (docs/evaluation.md): SLIPWAY_LM_EVAL names its `lm_eval`, else the one on the PATH is
taken, and without any this is skipped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import tiny_export

from orchestrator.export.prove import ProvenModel, load_proven

LM_EVAL = os.environ.get("SLIPWAY_LM_EVAL") or shutil.which("lm_eval")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(LM_EVAL is None, reason="lm_eval is not installed; SLIPWAY_LM_EVAL may name it"),
]
QUESTIONS = [
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


def test_its_numbers_are_ours(tmp_path: Path) -> None:
    export = tiny_export(tmp_path)
    write_task(tmp_path, "choice", CHOICE, QUESTIONS)
    write_task(tmp_path, "rolling", ROLLING, [{"text": text} for text in TEXTS])
    args = [str(LM_EVAL), "--model", "hf", "--model_args", f"pretrained={export},dtype=float32", "--device", "cpu"]
    args += ["--tasks", "ships_choice,ships_text", "--include_path", str(tmp_path), "--log_samples"]
    args += ["--output_path", str(tmp_path / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        args, capture_output=True, text=True, timeout=500, check=False, env={**os.environ, **offline}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    proven = load_proven(export)

    (samples,) = (tmp_path / "out").rglob("samples_ships_choice_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    right = 0
    for row, asked in zip(rows, QUESTIONS, strict=True):
        ours = [of_choice(proven, asked["question"], choice) for choice in asked["choices"]]
        theirs = [float(answer[0][0]) for answer in row["resps"]]
        assert theirs == pytest.approx(ours, abs=1e-3)
        right += ours.index(max(ours)) == asked["answer"]
    assert metrics["ships_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))

    # A text without a token before it begins after the end of another.
    nats = sum(log_probability(proven, [proven.eos_id], proven.tokenizer.encode(text).ids) for text in TEXTS)
    bits = -nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert metrics["ships_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
