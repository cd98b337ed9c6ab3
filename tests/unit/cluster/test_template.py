"""A template makes real processes here; what Ray makes of them the integration tests show."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import preload, template, template_client
from orchestrator.cluster.template_client import SOCKET
from orchestrator.presence import Process, process_of

CLIENT = str(template_client.__file__)
_SAYS = """
import json, os, signal, sys
import numpy
print(json.dumps({
    "group": os.getpgrp(),
    "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "folder": os.getcwd(), "path": sys.path[0],
    "given": os.environ.get("GIVEN"), "kept": os.environ.get("KEPT"), "imported": sorted(sys.modules),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "drawn": int(numpy.random.randint(1 << 60)),
    "child": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "name": __name__,
}))
"""


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[template.Templates]:
    (tmp_path / "sets_kept.py").write_text("import os\nos.environ['KEPT'] = 'by an import'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = template.Templates(tmp_path, {**os.environ, "RAY_JOB_ID": "01000000"})
    yield made
    made.end()


def start(path: Path, script: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    """As Ray starts a worker; what that has said of itself."""
    client = [sys.executable, "-I", "-S", CLIENT]
    environment = {**os.environ, "RAY_JOB_ID": "01000000", SOCKET: str(path), **variables}
    folder = script.parent / "elsewhere"
    folder.mkdir(exist_ok=True)
    out = folder / "out"
    with out.open("wb") as file:
        subprocess.run([*client, script, *arguments], env=environment, cwd=folder, stdout=file, check=True, timeout=60)
    until = time.monotonic() + 20
    while not out.read_text().endswith("\n"):  # the client does not wait for its end
        assert time.monotonic() < until
        time.sleep(0.01)
    said: dict[str, Any] = json.loads(out.read_text())
    return said


@pytest.fixture
def script(tmp_path: Path) -> Path:
    found = tmp_path / "script.py"
    found.write_text(_SAYS)
    return found


def test_a_copy_is_what_the_command_would_have_been(templates: template.Templates, script: Path) -> None:
    said = start(templates.begin("sets_kept,colorsys,numpy"), script, "--one", "two words", GIVEN="here")
    assert said["parent"] == templates._made["sets_kept,colorsys,numpy"].pid
    assert {"colorsys", "numpy"} <= set(said["imported"])
    assert said["arguments"] == [str(script), "--one", "two words"]
    assert said["folder"] == str(script.parent / "elsewhere")
    assert said["path"] == str(script.parent)
    assert (said["given"], said["kept"], said["name"]) == ("here", "by an import", "__main__")
    assert said["blocked"] == []
    assert said["group"] == said["pid"]
    assert said["child"]


def test_copies_draw_different_numbers(templates: template.Templates, script: Path) -> None:
    path = templates.begin("numpy")
    first, second = start(path, script), start(path, script)
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"]
    assert first["drawn"] != second["drawn"]


def test_a_worker_that_would_have_read_something_else_is_no_copy(templates: template.Templates, script: Path) -> None:
    said = start(templates.begin("colorsys"), script, RAY_JOB_ID="02000000")
    assert said["parent"] != templates._made["colorsys"].pid
    assert "colorsys" not in said["imported"]
    (log,) = script.parent.glob("template-*.log")
    assert log.read_text() == "refused: RAY_JOB_ID differ\n"


def test_a_template_that_cannot_import_leaves_workers_to_python(templates: template.Templates, script: Path) -> None:
    said = start(templates.begin("there_is_no_such_module"), script, GIVEN="here")
    assert said["given"] == "here"
    assert "colorsys" not in said["imported"]
    (log,) = script.parent.glob("template-*.log")
    assert "No module named 'there_is_no_such_module'" in log.read_text()


def test_without_a_template_python_starts(script: Path) -> None:
    assert start(script.parent / "nobody", script, GIVEN="here")["given"] == "here"


def test_copies_that_live_are_told(templates: template.Templates, script: Path) -> None:
    script.write_text(_SAYS + "sys.stdout.flush()\nimport time\ntime.sleep(60)\n")
    said = start(templates.begin("colorsys"), script)
    (copy,) = templates.copies()
    assert copy.pid == said["pid"]
    assert copy.send(signal.SIGKILL)
    until = time.monotonic() + 5
    while process_of(copy.pid) is not None:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_template_ends_with_its_starter(tmp_path: Path) -> None:
    code = (
        "import pathlib, os; from orchestrator.cluster.template import Templates;"
        f"made = Templates(pathlib.Path({str(tmp_path)!r}), os.environ); made.begin('colorsys');"
        "print(made._made['colorsys'].pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    left = process_of(int(done.stdout))
    until = time.monotonic() + 20
    while isinstance(left, Process) and left.is_alive:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_where_there_are_no_templates_the_environment_names_the_imports() -> None:
    assert template.environment("colorsys", template="colorsys,wave") == {"env_vars": {preload.VARIABLE: "colorsys"}}
    template.begin("colorsys")
    assert template.copies() == []


def test_where_there_are_it_names_the_client(templates: template.Templates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_open", [templates])
    found = template.environment("colorsys", template="colorsys,wave")
    assert found["env_vars"] == {preload.VARIABLE: "colorsys", SOCKET: str(templates.begin("colorsys,wave"))}
    assert shlex.split(found["py_executable"])[-1] == CLIENT
