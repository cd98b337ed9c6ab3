"""A run that trains on is served: its newer checkpoints come by themselves, and clients notice nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Result, command, environment, kill_all, write_words
from serve_fixtures import Clients, Live, free_port, wait_until

from orchestrator.checkpoint.reader import committed_steps
from orchestrator.serve.host import detached, records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
JOB = """\
name: tiny
data:
  sources: [{{path: {text}, format: text}}]
  tokenizer: {{train: bpe, vocab_size: 320}}
  split: {{validation: 0.05, test: 0.05}}
model: {{kind: gpt, layers: 2, width: 32, heads: 2, kv_heads: 1, context: 64}}
train:
  steps: 100000
  batch_tokens: 320
  precision: fp32
  workers: {{min: 1, max: 1}}
  checkpoint: {{every_steps: {every}, keep_last: 4}}
  evaluate: {{every_steps: {every}}}
  seed: 3
track: {{wandb: {{mode: disabled}}}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run that has a checkpoint and trains on until the test ends."""
    text = write_words(tmp_path / "words.txt", lines=3000)
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(text=text, every=600))
    log = (tmp_path / "train.log").open("w")
    args = command("run", job, "--store", tmp_path / "store", "--until", "train")
    trainer = subprocess.Popen(args, stdout=log, stderr=log, env=environment(), text=True)
    try:

        def runs() -> list[Path]:
            assert trainer.poll() is None, (tmp_path / "train.log").read_text()[-2000:]
            return [run for run in (tmp_path / "store" / "runs").glob("tiny-*") if committed_steps(run)]

        wait_until(lambda: bool(runs()), 120, "a first checkpoint")
        yield runs()[0]
    finally:
        kill_all(trainer)
        log.close()


def test_newer_checkpoints_come_by_themselves(run: Path, slipway: Callable[..., Result]) -> None:
    port = free_port()
    store = run.parent.parent
    done = slipway("serve", run.name, "--store", store, "--port", port, "--follow", "--detach", "--json")
    assert done.code == 0, done.stderr
    try:
        (record,) = [each for each in records.living() if each.port == port]
        live = Live(port, record.mark)
        with Clients(live.completions, 3, max_tokens=20) as clients:
            wait_until(lambda: {"v1", "v2", "v3"} <= set(clients.answers), 150, "a third version")
        assert clients.failures == []
        lines = records.history_path(port).read_text()
        assert [event for event, _ in live.events()[:3]] == ["started", "promoted", "promoted"], lines
        assert "swapped in" in lines
    finally:
        detached.stop(port)
