"""What travels with a job, and what must not."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster.jobs import packing
from orchestrator.cluster.jobs.packing import entry_point, metadata_of, packed, runtime_env, with_absolute_paths
from orchestrator.cluster.jobs.values import Settings
from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job

SETTINGS = Settings(store="/shared/store", until="train")
TinyJob = Callable[..., JobSpec]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_job_alone_travels(tiny_job: TinyJob) -> None:
    with packed(tiny_job(), SETTINGS) as package:
        assert files(package.folder) == {"job.yaml"}
        assert load_job(package.folder / "job.yaml") == tiny_job()
        assert package.packages is None
    assert not package.folder.exists()


def test_dev_brings_the_working_tree_without_what_git_ignores(tiny_job: TinyJob) -> None:
    with packed(tiny_job(), replace(SETTINGS, dev=True)) as package:
        found = files(package.folder)
        assert {"orchestrator/cli.py", "orchestrator/serve/api/page.html", "model/config.py"} <= found
        assert not [name for name in found if "__pycache__" in name or name.startswith((".", "tests"))]
    assert "--version" not in package.command


def custom(spelled: str) -> JobSpec:
    return load_job(Path(__file__).parents[4] / "jobs" / "transactions.yaml", [f"model.class={spelled}"])


@pytest.mark.parametrize(
    ("spelled", "brought"),
    [
        ("nets:Net", {"nets.py"}),
        ("pack.inner:Net", {"pack/__init__.py", "pack/inner.py"}),
        ("elsewhere:Net", set()),
    ],
)
def test_a_module_below_the_working_folder_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str, brought: set[str]
) -> None:
    for name in ("nets.py", "pack/__init__.py", "pack/inner.py", "pack/__pycache__/inner.pyc", "pack/.secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with packed(custom(spelled), SETTINGS) as package:
        assert files(package.folder) == {"job.yaml", *brought}


def test_what_is_too_large_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "weights.bin").write_bytes(bytes(2000))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packing, "_MOST_BYTES", 1500)
    with pytest.raises(JobError) as raised, packed(custom("pack:Net"), SETTINGS):
        pass
    assert "pack/weights.bin" in str(raised.value.fix)


def test_a_value_given_with_a_variable_s_name_is_refused_and_not_repeated(tiny_job: TinyJob) -> None:
    asked = replace(SETTINGS, environment=("WANDB_API_KEY=planted",))
    with pytest.raises(JobError, match="NAME of a variable alone") as raised, packed(tiny_job(), asked):
        pass
    assert "planted" not in str(raised.value)


def test_an_image_goes_alone(tiny_job: TinyJob) -> None:
    asked = replace(SETTINGS, image="registry/slipway:1", dev=True)
    with pytest.raises(JobError, match="--image"), packed(tiny_job(), asked):
        pass
    env = runtime_env(replace(asked, dev=False), working_dir="/here", packages=None)
    assert env["container"] == {"image": "registry/slipway:1", "run_options": ["-v", "/shared/store:/shared/store"]}
    assert "working_dir" not in env


def test_the_environment_names_the_folders_and_how_long_a_stop_waits() -> None:
    env = runtime_env(SETTINGS, working_dir="/here", packages="gcs://p.zip")
    assert (env["working_dir"], env["py_modules"]) == ("/here", ["gcs://p.zip"])
    assert env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "90"}
    assert "py_modules" not in runtime_env(SETTINGS, working_dir="/here", packages=None)


def test_the_command_says_what_must_hold_and_no_value(tiny_job: TinyJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "planted")
    job = tiny_job("data.sources=[{path: '${env:PLACE}/x'}, {path: '${env:OTHER:-y}/x'}]")
    words = shlex.split(entry_point(job, replace(SETTINGS, environment=("WANDB_API_KEY",))))
    needs = [after for word, after in itertools.pairwise(words) if word == "--need"]
    assert needs == ["PLACE", "WANDB_API_KEY"]
    assert words[words.index("--store") + 1] == "/shared/store"
    told = json.dumps([words, metadata_of(job, SETTINGS)])
    assert "planted" not in told


def test_metadata_is_text_that_gives_the_job_again(tiny_job: TinyJob, tmp_path: Path) -> None:
    told = metadata_of(tiny_job(), SETTINGS)
    assert {type(value) for value in told.values()} == {str}
    (tmp_path / "job.yaml").write_text(told["job"])
    assert load_job(tmp_path / "job.yaml") == tiny_job()
    assert Settings.from_json(told["settings"]) == SETTINGS


def test_relative_sources_are_those_of_this_folder(
    tiny_job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tiny_job("data.sources=[{path: x}, {path: /y}, {path: 's3://b/z'}, {path: '${env:Z}'}, {path: '~/w'}]")
    paths = [source.path for source in with_absolute_paths(job).data.sources]
    assert paths == [f"{tmp_path}/x", "/y", "s3://b/z", "${env:Z}", "~/w"]
