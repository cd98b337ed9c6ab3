"""The command line's promises: help with an example, exit codes, one JSON document, never a traceback."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import orchestrator
from orchestrator.cli import app
from orchestrator.errors import JobError

Slipway = Callable[..., "subprocess.CompletedProcess[str]"]
GROUPS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
COMMANDS: dict[str, Any] = {
    " ".join(words): command
    for name, found in GROUPS.items()
    for words, command in (
        [
            *([((name,), found)] if found.invoke_without_command else []),
            *(((name, inner), c) for inner, c in found.commands.items()),
        ]
        if hasattr(found, "commands")
        else [((name,), found)]
    )
}
"""Every verb; those of a group as `data show`, and the group itself where it does something alone."""
OF_NO_STORE = {"audit", "feedback", "jobs", "keys", "rollback", "usage"}
"""They are about services and a cluster's jobs, which know a store by the paths that they were given."""
TAKES_JOB = sorted(name for name, c in COMMANDS.items() if any("--set" in p.opts for p in c.params))


def test_every_printer_that_a_verb_names_is_there() -> None:
    modules = [path.read_text() for path in Path(orchestrator.__file__).parent.glob("cli*.py")]
    named = {name for text in modules for name in re.findall(r'as_json, "([\w.]+)"\)', text)}
    assert {"print_plan", "runs.print_runs"} <= named
    for name in named:
        group, _, printer = name.rpartition(".")
        assert callable(getattr(import_module(f"orchestrator.cli_print{group and '_'}{group}"), printer)), name


def test_these_verbs_work() -> None:
    wanted = {"plan", "run", "prepare", "train", "export", "serve", "runs", "submit", "doctor", "chaos"}
    wanted |= {
        "rollback",
        "usage",
        "keys create",
        "keys list",
        "keys revoke",
        "keys update",
        "feedback list",
        "feedback export",
        "lineage",
    }
    wanted |= {
        "runs compare",
        "runs tag",
        "audit verify",
        "import",
        "evaluate",
        "checkpoints list",
        "checkpoints verify",
        "runs list",
        "runs show",
    }
    wanted |= {f"jobs {verb}" for verb in ("list", "show", "logs", "stop", "retry")}
    wanted |= {f"data {verb}" for verb in ("list", "show", "sample", "verify", "find", "order")}
    assert wanted <= set(COMMANDS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_help_of_every_verb_has_an_example_that_parses(verb: str, root: Path) -> None:
    done = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    (example,) = re.findall(r"^\s*Example:\s+(slipway .*)$", done.output, re.MULTILINE)
    words = shlex.split(example)
    assert words[: 1 + len(verb.split())] == ["slipway", *verb.split()]
    known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    for job in (word for word in words if word.endswith(".yaml")):
        assert (root / job).is_file()


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_takes_json_and_a_store(verb: str) -> None:
    known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
    assert "--json" in known
    assert "--store" in known or verb.split(maxsplit=1)[0] in OF_NO_STORE
    assert all(p.help for p in COMMANDS[verb].params), "an option without a word of help"


def test_the_help_names_every_verb(slipway: Slipway) -> None:
    done = slipway("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert [verb for verb in GROUPS if not re.search(rf"^ +{verb} +\S", done.stdout, re.MULTILINE)] == []


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """What a refusal says to people; it has a fix and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "\n  fix: " in done.stderr
    return done.stderr


QUICKSTART = ["plan", "jobs/quickstart.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*QUICKSTART, "--stor", "x"], "No such option"),
        (["plan"], "Missing argument 'JOB'"),
        (["fly"], "No such command 'fly'"),
        (["run", "jobs/quickstart.yaml", "--until", "lunch"], "'lunch' is not one of"),
        (["serve", "x", "--port", "0"], "'--port': Input should be greater than or equal to 1"),
        (["serve"], "serve needs a RUN"),
        (["runs", "shwo"], "No such command 'shwo'"),
        (["runs", "--json", "show", "x"], "--json stands before the verb"),
        (["runs", "--store", "x", "list"], "--store stands before the verb"),
        (["plan", "jobs/none.yaml"], "there is no job file jobs/none.yaml"),
        (["plan", "jobs"], "the job file jobs cannot be read"),
        ([*QUICKSTART, "--set", "train.steps"], "has no value"),
        ([*QUICKSTART, "--set", "train.stpes=3"], "unknown key 'train.stpes'; did you mean 'steps'?"),
        ([*QUICKSTART, "--set", "train.steps=many"], "should be a valid integer"),
        ([*QUICKSTART, "--set", "train.batch_tokens=256", "--cpus", "8"], "fewer than the 2 workers"),
        ([*QUICKSTART, "--cpus", "4", "--nodes", "0"], "'--nodes': Input should be greater than or equal to 1"),
        ([*QUICKSTART, "--gpus", "-1"], "'--gpus': Input should be greater than or equal to 0"),
    ],
)
def test_wrong_usage_exits_2_with_a_word_of_help(slipway: Slipway, arguments: list[str], said: str) -> None:
    assert said in refused(slipway(*arguments), 2)


def test_a_misspelt_key_is_told_with_its_line(slipway: Slipway, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\ndata: {sources: [{path: x}]}\ntrain:\n  stepz: 3\n  batch_tokens: 256\n")
    said = refused(slipway("run", str(path)), 2)
    assert f"{path}:4: unknown key 'train.stepz'; did you mean 'steps'?" in said


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["plan", "jobs/none.yaml"], 2, "job"),
        ([*QUICKSTART, "--what"], 2, "job"),
        (["run", "jobs/quickstart.yaml", "--set", "data.sources=[{path: /none}]"], 3, "data"),
        (["run", "jobs/quickstart.yaml", "--set", "train.workers={min: 999}"], 4, "capacity"),
        (["export", "none"], 6, "store"),
        (["serve", "none"], 6, "store"),
        (["runs", "show", "none"], 6, "store"),
    ],
)
def test_a_failure_is_one_json_document(slipway: Slipway, arguments: list[str], code: int, kind: str) -> None:
    done = slipway(*arguments, "--json")
    refused(done, code)
    error = json.loads(done.stdout)["error"]
    assert (error["exit_code"], error["kind"]) == (code, kind)
    assert error["message"]
    assert error["fix"]


def test_debug_shows_the_traceback(slipway: Slipway) -> None:
    done = slipway("--debug", "plan", "jobs/none.yaml")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("verb", TAKES_JOB)
def test_every_verb_that_takes_a_job_takes_set(verb: str, root: Path) -> None:
    job = str(root / "jobs" / "quickstart.yaml")
    more = {
        "submit": ["--address", "http://127.0.0.1:1"],
        "data order": ["--steps", "0:1"],
        "evaluate": ["--job", job],
        "kubernetes render": ["--out", "nowhere"],
    }
    needed = more.get(verb, [])
    done = CliRunner().invoke(app, [*verb.split(), job, "--set", "train.zero.stage=9", *needed])
    assert isinstance(done.exception, JobError)
    assert "--set train.zero.stage: train.zero.stage = 9" in done.exception.message


def test_an_empty_store_has_no_runs(slipway: Slipway, tmp_path: Path) -> None:
    done = slipway("runs", "--store", str(tmp_path / "none"), "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"runs": []})
    for verb in (["runs"], ["runs", "list"]):
        assert slipway(*verb, "--store", str(tmp_path / "none")).stdout == "none\n"
