"""The image is built as the README says, from what the set-up reads, and holds no secret."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.kubernetes.pods import USER

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
STEPS = [tuple(line.split(maxsplit=1)) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def of(instruction: str) -> list[str]:
    return [words for name, words in STEPS if name == instruction]


def test_it_has_what_the_readme_asks_for() -> None:
    (asked,) = re.findall(r"You need Linux, Python ([\d.]+), (.*)\.", README)
    version, programs = asked[0], re.findall(r"`(\w+)`", asked[1])
    assert of("FROM")[0].startswith(f"python:{version}-")
    (installs,) = [words for words in of("RUN") if "apt-get install" in words]
    assert set(programs) <= set(installs.split())


def test_it_is_set_up_by_the_readmes_step_and_nothing_else_installs() -> None:
    assert "`make setup`" in README
    (build,) = [words for words in of("RUN") if "make" in words.split() and "apt-get" not in words]
    assert build.startswith("make setup")
    assert not re.search(r"\b(pip|uv|conda|curl|wget)\b", " ".join(of("RUN")))
    (folder,) = of("WORKDIR")
    assert any(f"PATH={folder}/.venv/bin:" in words for words in of("ENV"))


def test_it_runs_as_the_pods_user() -> None:
    assert of("USER") == [f"{USER}:{USER}"]
    assert [name for name, _ in STEPS].index("USER") < [name for name, _ in STEPS].index("COPY")


def test_no_secret_goes_in() -> None:
    given = " ".join(of("ENV") + of("ARG"))
    assert not re.search(r"(?i)(password|secret|api_key|auth_token)", given)


def test_only_what_the_set_up_reads_and_jobs_need_goes_in() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert [name for name in kept if not (ROOT / name).exists()] == []
    assert {"Makefile", "scripts", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"} <= kept
    assert {"model", "orchestrator"} <= kept
    assert not {".git", ".venv", ".slipway", ".env"} & kept
