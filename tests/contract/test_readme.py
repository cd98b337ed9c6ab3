"""What the documents tell a user to type exists: verbs, options, job files, keys, make targets, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli import app
from orchestrator.job_file import load_job

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SHELLS = {"bash", "sh", "shell", "console"}
CLI: Any = typer.main.get_command(app)
_SEPARATORS = {"|", "||", "&&", "&", ";", ">", ">>", "<", "(", ")"}


@dataclass(frozen=True)
class Command:
    """One simple command of a document, without the assignments before it."""

    where: str
    words: list[str]

    @property
    def name(self) -> str:
        return self.words[0].rpartition("/")[2]


def blocks(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """Language, first line number and lines of each code block; indented ones have no language."""
    language, block, first = None, [], 0
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.match(r"\s*(```+|~~~+)\s*([\w-]*)", line)
        if fence and language is None:
            language, block, first = fence.group(2) or "none", [], number + 1
        elif fence:
            yield str(language), first, block
            language = None
        elif language is not None:
            block.append(line)
        elif re.match(r" {4}(slipway|make|\.venv/bin/slipway) ", line):
            yield "sh", number, [line.strip()]


def shell_lines(lines: list[str], first: int) -> Iterator[tuple[int, str]]:
    """Whole command lines: prompts left out, continued lines joined."""
    whole, began = "", first
    for number, line in enumerate(lines, start=first):
        began = began if whole else number
        whole += re.sub(r"^\s*\$ ", "", line)
        if whole.endswith("\\"):
            whole = whole[:-1] + " "
            continue
        if whole.strip():
            yield began, whole
        whole = ""


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line; comments, redirections and assignments left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quote that is closed on a later line: the text of another program
        words = []
    command: list[str] = []
    for word in [*words, ";"]:
        if word in _SEPARATORS:
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Za-z_]\w*=.*", word):
            command.append(word)


def commands() -> Iterator[Command]:
    for path in DOCUMENTS:
        for language, first, lines in blocks(path.read_text(encoding="utf-8")):
            if language in SHELLS:
                for number, line in shell_lines(lines, first):
                    for words in simple_commands(line):
                        yield Command(f"{path.relative_to(ROOT)}:{number}", words)


COMMANDS = list(commands())
OURS = [command for command in COMMANDS if command.name == "slipway"]


def named(command: Command) -> str:
    return f"{command.where} {' '.join(command.words)[:60]}"


def test_the_readme_shows_the_way() -> None:
    shown = {c.words[1] for c in OURS if c.where.startswith("README.md") and len(c.words) > 1}
    assert {"plan", "run", "serve"} <= shown
    assert ["make", "demo"] in [c.words for c in COMMANDS if c.where.startswith("README.md")]


@pytest.mark.parametrize("command", OURS, ids=named)
def test_slipway_has_the_verb_and_its_options(command: Command) -> None:
    words = [word.strip("[]") for word in command.words[1:]]
    general = {option for parameter in CLI.params for option in parameter.opts} | {"--help"}
    while words and words[0] in general:
        words = words[1:]
    if not words:
        return
    verb, rest = words[0], words[1:]
    assert verb in CLI.commands, f"there is no verb {verb!r}"
    found = CLI.commands[verb]
    if hasattr(found, "commands") and rest:
        verb, rest = rest[0], rest[1:]
        assert verb in found.commands, f"there is no verb {words[0]} {verb!r}"
        found = found.commands[verb]
    known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
    used = {word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"}
    assert used <= known, f"{verb} has no {', '.join(sorted(used - known))}"


@pytest.mark.parametrize("command", [c for c in OURS if any(w.startswith("jobs/") for w in c.words)], ids=named)
def test_the_job_is_there_and_takes_what_is_set(command: Command) -> None:
    (job,) = [word for word in command.words if word.startswith("jobs/")]
    sets = [value for option, value in zip(command.words, command.words[1:], strict=False) if option == "--set"]
    assert load_job(ROOT / job, sets).name


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.name == "make"], ids=named)
def test_make_has_the_target(command: Command) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    options = iter(command.words[1:])
    for word in options:
        if word in ("-C", "-j", "-f"):
            next(options)
        elif not word.startswith("-") and "=" not in word:
            assert word in targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target)
        and target.partition("#")[0]
        and not (path.parent / target.partition("#")[0]).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_whole_job_files_in_documents_are_valid(path: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    for job in ROOT.glob("jobs/*.yaml"):
        (tmp_path / job.name).symlink_to(job)
    for number, (language, _, lines) in enumerate(blocks(path.read_text(encoding="utf-8"))):
        if language in ("yaml", "yml") and any(line.startswith("extends:") for line in lines):
            mine = tmp_path / f"block-{number}.yaml"
            mine.write_text("\n".join(lines), encoding="utf-8")
            load_job(mine)
