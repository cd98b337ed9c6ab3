"""How the repository is laid out: tests mirror modules, functions fit a screen, heavy imports stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
OURS = sorted(p for top in ("orchestrator", "model") for p in (ROOT / top).rglob("*.py"))
SOURCES = [
    *OURS,
    *sorted(p for top in ("tests", "benchmarks", "examples", "scripts") for p in (ROOT / top).rglob("*.py")),
]
UNIT_TESTS = sorted((ROOT / "tests" / "unit").rglob("test_*.py"))
ACROSS_MODULES = {
    "train/test_gradients.py": "shares, micro-batches, weights and the model together",
    "data/labelled/test_encoding.py": "every kind: records to columns",
    "data/labelled/test_formats.py": "CoNLL and SQuAD files",
    "data/labelled/test_real_data.py": "every kind on published sets",
    "data/labelled/test_rows.py": "every kind: rows to records",
}
"""Unit tests of what several modules do together, with what that is."""
OUTSIDE = ("/" + "work/", "/" + "root/")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", UNIT_TESTS, ids=relative)
def test_every_unit_test_mirrors_a_module(path: Path) -> None:
    name = path.relative_to(ROOT / "tests" / "unit").as_posix()
    if name in ACROSS_MODULES:
        return
    folder, module = path.relative_to(ROOT / "tests" / "unit").parent, path.name.removeprefix("test_")
    if module == "writer_reader.py":  # two modules that are one another's inverse
        assert (ROOT / "orchestrator" / folder / "reader.py").is_file()
        module = "writer.py"
    top = ROOT if folder.parts[:1] == ("model",) else ROOT / "orchestrator"
    assert (top / folder / module).is_file(), f"{name} mirrors no module"


def test_tests_are_no_packages() -> None:
    assert [relative(p) for p in (ROOT / "tests").rglob("__init__.py")] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    long = [
        f"{node.name} has {length} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


PURE = ("cli", "plan", "status", "job_file", "store", "identity", "runfolder", "cluster.view", "cluster.token")


def test_the_pure_part_loads_nothing_heavy(modules_after: Callable[[str], set[str]]) -> None:
    loaded = modules_after("import " + ", ".join(f"orchestrator.{module}" for module in PURE))
    assert {"torch", "ray", "deepspeed", "wandb", "pyarrow", "tokenizers", "transformers"} & loaded == set()


def test_neither_model_nor_loop_knows_what_they_run_on(modules_after: Callable[[str], set[str]]) -> None:
    model = "import sys, model.gpt, model.generate, model.huggingface; assert 'orchestrator' not in sys.modules"
    loaded = modules_after(f"{model}\nimport orchestrator.train.loop, orchestrator.train.worker")
    assert {"ray", "deepspeed", "wandb", "transformers"} & loaded == set()


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Name and text of every file that git tracks; of every file, where this is no checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [n for n in listed.stdout.split("\0") if n] or [relative(p) for p in SOURCES]
    for name in names:
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def test_no_file_names_a_place_outside_the_repository() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if any(place in line for place in OUTSIDE)
    ]
    assert found == []
