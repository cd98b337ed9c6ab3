"""What travels with a job: the job itself, a custom network's module, the working tree, packages; and the command."""

from __future__ import annotations

import contextlib
import getpass
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.cluster.jobs import requirements
from orchestrator.cluster.jobs.interpreter import on_the_head
from orchestrator.cluster.jobs.values import MARK, Settings, job_identity
from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_file import env_names, job_to_yaml
from orchestrator.source_code import NOTE, code_commit

JOB_FILE = "job.yaml"
STOP_WAIT_S = 90
"""How long a stop lets a run finish its step, save and end before it is killed; Ray's default is 3 s."""
_MOST_BYTES = 100_000_000
_MOST_JOB_BYTES = 64_000
"""The job travels in an environment variable too, of which Linux takes 128 KiB."""
_OURS = ("orchestrator", "model")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")


@dataclass(frozen=True)
class Package:
    """A job that is ready to be handed over."""

    folder: Path
    """The working folder of the driver and of every worker."""
    packages: Path | None
    """What `requirements` asks for."""
    command: str
    metadata: dict[str, str]


@contextlib.contextmanager
def packed(job: JobSpec, settings: Settings) -> Iterator[Package]:
    """Lay a job out in a temporary folder, for as long as the block lasts.

    Raises:
        JobError: packages that are not pinned or not to be had, no working tree, or more than 100 MB.
    """
    _check(job, settings)
    with tempfile.TemporaryDirectory(prefix="slipway-submit-") as made:
        folder, packages = Path(made) / "work", Path(made) / "packages"
        folder.mkdir()
        (folder / JOB_FILE).write_text(job_to_yaml(job), encoding="utf-8")
        if settings.dev:
            _copy_working_tree(folder)
        if job.model.class_:
            _copy_module(job.model.class_, folder)
        _require_small(folder)
        if settings.requirements:
            requirements.install(settings.requirements, packages)
        found = packages if settings.requirements else None
        yield Package(folder, found, entry_point(job, settings), metadata_of(job, settings))


def runtime_env(settings: Settings, *, working_dir: str, packages: str | None) -> dict[str, Any]:
    """Ray's description of the job's environment. What stands in it shows in the dashboard."""
    # Ray reads the variable in the process that watches over the job, which has the job's environment.
    found: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
    if settings.image:  # goes with nothing else; the store is the one folder that must be the same inside
        mount = ["-v", f"{settings.store}:{settings.store}"]
        return {**found, "container": {"image": settings.image, "run_options": mount}}
    found["working_dir"] = working_dir
    return found | ({"py_modules": [packages]} if packages else {})


def entry_point(job: JobSpec, settings: Settings) -> str:
    """The command that the cluster runs. Nothing secret is in it: it shows in the dashboard."""
    arguments = ["--store", settings.store, "--until", settings.until]
    if not settings.dev:
        arguments += ["--version", version("slipway"), "--commit", code_commit() or "unknown"]
    if settings.requirements:
        arguments += ["--platform", requirements.this_platform()]
    for name in sorted({*settings.environment, *required_variables(job)}):
        arguments += ["--need", name]
    drive = shlex.join(["-m", "orchestrator.cluster.jobs.drive", *arguments])
    if settings.image:
        return f"exec python {drive}"
    return on_the_head(drive)


def metadata_of(job: JobSpec, settings: Settings) -> dict[str, str]:
    """What tells one of our jobs from others, who handed it over, and what `retry` needs."""
    return {
        MARK: job.name,
        "identity": job_identity(job, settings),
        "user": f"{getpass.getuser()}@{socket.gethostname()}",
        "version": version("slipway"),
        "commit": code_commit() or "unknown",
        "settings": settings.to_json(),
        "job": job_to_yaml(job),
    }


def required_variables(job: JobSpec) -> list[str]:
    """The NAMES that the job refers to as `${env:NAME}`, and gives no default for."""
    return [name for name in env_names(job_to_yaml(job)) if f"${{env:{name}}}" in job_to_yaml(job)]


def with_absolute_paths(job: JobSpec) -> JobSpec:
    """The job with relative sources as seen from here: the driver starts in another folder."""

    def absolute(path: str) -> str:
        return path if path.startswith(("$", "/", "~")) or "://" in path else str(Path.cwd() / path)

    sources = [source.model_copy(update={"path": absolute(source.path)}) for source in job.data.sources]
    given = job.data.tokenizer.path
    tokenizer = job.data.tokenizer.model_copy(update={"path": absolute(given) if given else None})
    template = tokenizer.chat_template
    if template and template != "chatml" and "{" not in template.replace("${", ""):
        tokenizer = tokenizer.model_copy(update={"chat_template": absolute(template)})
    against = [e.model_copy(update={"path": absolute(e.path)}) for e in job.data.deduplicate.against]
    deduplicate = job.data.deduplicate.model_copy(update={"against": against})
    datasets = [  # a name stands for a dataset of the store there
        d.model_copy(update={"dataset": absolute(d.dataset)}) if Path(d.dataset).is_dir() else d
        for d in job.data.datasets
    ]
    update = {"sources": sources, "tokenizer": tokenizer, "deduplicate": deduplicate, "datasets": datasets}
    data = job.data.model_copy(update=update)
    return job.model_copy(update={"data": data})


def _check(job: JobSpec, settings: Settings) -> None:
    if settings.image and (settings.dev or settings.requirements):
        raise JobError(
            "--image runs what the image has: --dev and --requirement do not go with it",
            fix="build the code and the packages into the image, or leave --image out",
        )
    for name in settings.environment:
        if not name.isidentifier():
            raise JobError(
                f"--env takes the NAME of a variable alone, not {name.partition('=')[0]}=...: the value would show in "
                "the dashboard",
                fix="set it where Ray is started on each node, from a file of mode 0600, and give its name",
            )
    requirements.check_pinned(settings.requirements)
    if len(job_to_yaml(job).encode()) > _MOST_JOB_BYTES:
        raise JobError(f"the job is larger than {_MOST_JOB_BYTES:,} bytes", fix="shorten its lists; sources take globs")


def _copy_working_tree(into: Path) -> None:
    """This checkout's code, without what git ignores."""
    root = Path(orchestrator.__file__).parents[1]
    if not (root / "pyproject.toml").is_file():
        raise JobError(f"--dev packs a checkout, and {root} is none", fix="run it from a checkout, or leave --dev out")
    call = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_OURS]
    listed = subprocess.run(call, capture_output=True, text=True, check=False)
    if listed.returncode:  # a copy without its history
        for name in _OURS:
            shutil.copytree(root / name, into / name, ignore=_LEFT_OUT)
        return
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():  # not one that was deleted, and not yet committed so
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, into / name)
    if commit := code_commit():
        (into / "orchestrator" / NOTE).write_text(commit, encoding="ascii")


def _copy_module(spelled: str, into: Path) -> None:
    """The module of `model.class`, where it lies below the working folder; else it is the cluster's matter."""
    top = spelled.partition(":")[0].partition(".")[0]
    folder, file = Path.cwd() / top, Path.cwd() / f"{top}.py"
    if (into / top).exists():
        return
    if folder.is_dir():
        shutil.copytree(folder, into / top, ignore=_LEFT_OUT)
    elif file.is_file():
        shutil.copy2(file, into / file.name)


def _require_small(folder: Path) -> None:
    sizes = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > _MOST_BYTES:
        largest = ", ".join(str(path) for path in sorted(sizes, key=lambda path: -sizes[path])[:3])
        raise JobError(
            f"the code of the job is {sum(sizes.values()) / 1e6:,.0f} MB, at most {_MOST_BYTES / 1e6:,.0f} MB travel",
            fix=f"move data out of the module's folder; the largest are {largest}",
        )
