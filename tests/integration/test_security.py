"""What listens where and answers whom is what docs/security.md says; and a secret that is used is found nowhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from export_fixtures import tiny_tokenizer
from harness import Result, command, environment, free_port, kill_all
from ports_fixtures import Port, answer, family, get, listening
from security_fixtures import Head, Planted, Watch, forms, s3, scan, wait_until

from orchestrator.cluster.token import token_path

pytestmark = [
    pytest.mark.skipif(shutil.which("ss") is None, reason="needs ss (iproute2)"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
Slipway = Callable[..., Result]
Row = tuple[str, str, str]
"""(process, where it listens, what it answers without the token)."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
JOB = """\
name: planted
data:
  sources: [{path: "${env:PLANTED_TEXT}"}]
  tokenizer: {path: "${env:PLANTED_TOKENIZER}"}
model: {layers: 2, width: 32, heads: 2, context: 32}
train:
  steps: 12
  batch_tokens: 256
  precision: fp32
  workers: {min: 1, max: 1}
  checkpoint: {every_steps: 6, copy_to: "s3://copies/here"}
track: {wandb: {mode: offline}}
"""
SHOWN = ("/api/jobs/", "/api/v0/tasks?detail=1", "/api/v0/actors?detail=1", "/api/v0/workers?detail=1")
SHOWN += (
    "/api/v0/runtime_envs?detail=1",
    "/api/v0/placement_groups?detail=1",
    "/nodes?view=summary",
    "/api/cluster_status",
)


def documented() -> set[Row]:
    """The rows of the table: a process in code each; of what it answers, what comes before a semicolon."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("## What listens where")[2].partition("\n## ")[0]
    rows = set()
    for line in text.splitlines():
        cells = [cell.strip().replace("**", "") for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("`"):
            rows |= {(process, cells[1], cells[2].split(";")[0]) for process in re.findall(r"`([^`]+)`", cells[0])}
    return rows


def rows_of(ports: Iterable[Port]) -> set[Row]:
    return {(port.process, port.where, answer(port)) for port in ports if port.process != "gone"}


@pytest.fixture(scope="module")
def own_ray(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[Row]]:
    """A `slipway run` with a Ray of its own, looked at while it trains, and one while it serves."""
    store = tmp_path_factory.mktemp("own") / "store"
    return {
        "training": looked_at(
            ("train", job_file, "--store", store, "--set", "train.steps=1000000"),
            lambda _: any(store.glob("runs/*/checkpoints/*/COMMITTED")),
        ),
        "serving": looked_at(
            ("run", job_file, "--store", store, "--json", "--set", f"serve.port={free_port()}"),
            lambda out: out.read_text().endswith("}\n"),
        ),
    }


def looked_at(verb: tuple[object, ...], ready: Callable[[Path], bool]) -> set[Row]:
    """The rows of a command's processes once it is so far; it is ended then."""
    with tempfile.NamedTemporaryFile("w") as out:
        process = subprocess.Popen(command(*verb), stdout=out, stderr=subprocess.DEVNULL, text=True, env=environment())
        try:
            wait_until(lambda: ready(Path(out.name)), 200, process)
            return rows_of(listening(family(process.pid)))
        finally:
            kill_all(process)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """Secrets, in the environment of a cluster's machine; others in that of whoever submits."""
    folder = tmp_path_factory.mktemp("planted")
    with s3() as endpoint:
        yield Planted(folder, endpoint)


@pytest.fixture(scope="module")
def head(planted: Planted) -> Iterator[Head]:
    """`ray start --head` as the README has it, where the secrets are in the environment."""
    with Head(planted.there) as started:
        yield started


def test_the_dashboard_tells_nothing_without_the_token_and_nothing_with_a_wrong_one(head: Head) -> None:
    token = token_path().read_text()
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/actors"):
        codes = [get(head.dashboard + path, key)[0] for key in (None, "", "wrong", token[:-1], token)]
        assert codes == [401, 403, 403, 403, 200], path


def test_a_planted_secret_is_found_nowhere(
    head: Head, planted: Planted, slipway: Slipway, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (planted.text / "a.txt").write_text("\n".join(f"{i} ropes and {i * i} sails" for i in range(3000)))
    planted.tokenizer.write_text(tiny_tokenizer())
    job = tmp_path / "planted.yaml"
    job.write_text(JOB)
    store = tmp_path / "store"
    more = ("--address", head.dashboard, "--store", store, "--until", "export", "--json")
    with Watch([*planted.needles, str(store)]) as watch:
        done = slipway("submit", job, *more, timeout_s=400, **planted.here)
    assert done.code == 0, done.stderr
    answers = {path: get(head.dashboard + path, token_path().read_text()) for path in SHOWN}
    assert [code for code, _ in answers.values()] == [200] * len(SHOWN)
    (tmp_path / "answers").write_bytes(b"\n".join(body for _, body in answers.values()))
    (tmp_path / "said").write_text(done.stdout + done.stderr)
    state = [path for path in tmp_path_factory.getbasetemp().glob("state*") if path.is_dir()]
    places = {"store": store, "ray": head.folder, "answers": tmp_path / "answers", "said": tmp_path / "said"}
    (run,) = store.glob("runs/*")
    assert any(run.glob("wandb/**/*.wandb"))
    assert any(planted.copies())  # the key of the object store was used
    for name, place in {**places, **{f"state{i}": path for i, path in enumerate(state)}}.items():
        assert scan(place, forms(planted.needles)) == [], name
    for place in places.values():
        assert scan(place, [b"planted"]), "what is not secret is found, or the search finds nothing"
    assert watch.seen == {str(store)}


def test_a_ray_of_our_own_is_what_the_table_says(own_ray: dict[str, set[Row]]) -> None:
    assert own_ray["training"] - documented() == set()
    assert own_ray["serving"] - documented() == set()


def test_a_head_is_what_the_table_says(own_ray: dict[str, set[Row]], head: Head) -> None:
    there = rows_of(listening(family(head.pid)))
    assert there - documented() == set()
    assert documented() - there - own_ray["training"] - own_ray["serving"] == set()  # and nothing else is in the table
