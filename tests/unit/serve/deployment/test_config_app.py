"""What a file of Ray Serve's names: it passes Serve's own schema, and nobody without a key gets in."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from orchestrator.cluster.view import declared_view
from orchestrator.errors import ServeError
from orchestrator.job import JobSpec, Serve
from orchestrator.kubernetes.clusters import serve_config
from orchestrator.kubernetes.pods import worker_pod
from orchestrator.kubernetes.sizes import serving_group
from orchestrator.kubernetes.values import Target
from orchestrator.plan import make_plan
from orchestrator.serve.accounts import keys
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.deployment.config_app import Arguments, require_key
from orchestrator.serve.host import foreground

TARGET = Target(image="slipway:1", ray_version="2.60.0", run="tiny-0123456789ab")


def a_job() -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "data": {"sources": [{"path": "s3://texts/all"}], "tokenizer": {"train": "bpe"}},
            "train": {"steps": 10, "batch_tokens": 256 * 8},
            "serve": {"replicas": {"min": 0, "max": 2}, "max_tokens": 64},
        }
    )


def test_the_file_is_one_that_ray_serve_takes() -> None:
    config = ServeDeploySchema.model_validate(serve_config(a_job(), TARGET))
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)
    assert [app.route_prefix for app in config.applications] == ["/", None]
    for app in config.applications:
        module, _, builder = app.import_path.partition(":")
        assert callable(getattr(importlib.import_module(module), builder))
        given = Arguments.model_validate(app.args)
        assert (given.settings, given.run) == (a_job().serve, "tiny-0123456789ab")
    assert config.applications[1].name == given.application


def test_pods_serve_as_our_own_processes_do() -> None:
    job = a_job()
    size = serving_group(job, make_plan(job, declared_view(nodes=1, cpus=1, gpus=0))).size
    container = worker_pod("tiny", TARGET, size, serve_port=8000)["spec"]["containers"][0]
    given = {each["name"]: each["value"] for each in container["env"]}
    assert foreground._ENVIRONMENT.items() <= given.items()


def test_without_a_key_nothing_is_served(tmp_path: Path) -> None:
    settings = Serve(accounts=str(tmp_path / "accounts.sqlite"))
    with pytest.raises(ServeError, match=r"accounts\.sqlite have no key"):
        require_key(settings)
    database = Database(str(tmp_path / "accounts.sqlite"))
    with database.transaction() as session:
        keys.create(session, keys.NewKey(name="ana"))
    database.close()
    require_key(settings)
