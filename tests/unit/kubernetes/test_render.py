"""The manifests of any job: every reference resolves, what pods ask for is the job's, no secret is in them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cluster.view import declared_view
from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.kubernetes import Render, Target, manifests, render
from orchestrator.kubernetes.surroundings import PLACEHOLDER
from orchestrator.plan import Plan, make_plan

TARGET = Target(image="registry.example.org/slipway:1", ray_version="2.60.0")
CLUSTERS = {"rayjob.yaml": "rayClusterSpec", "raycluster.yaml": None, "rayservice.yaml": "rayClusterConfig"}
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
WORKERS = st.builds(
    lambda least, more, cpus, gpus: {"min": least, "max": least + more, "cpus": cpus, "gpus": gpus},
    *(st.integers(1, 12), st.integers(0, 12), st.integers(1, 16), st.integers(0, 2)),
)
SERVE = st.builds(
    lambda least, more, cpus, gpus: {"replicas": {"min": least, "max": least + more}, "cpus": cpus, "gpus": gpus},
    *(st.integers(0, 3), st.integers(1, 3), st.integers(1, 8), st.integers(0, 1)),
)


def job_of(name: str = "tiny", workers: dict[str, int] | None = None, **sections: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": name,
            "data": {"sources": [{"path": "s3://texts/all", "format": "text"}], "tokenizer": {"train": "bpe"}},
            "model": {"layers": 2, "width": 64, "heads": 2, "context": 64},
            "train": {"steps": 10, "batch_tokens": 64 * 96, "workers": workers or {}},
            **sections,
        }
    )


Files = dict[str, list[dict[str, Any]]]


def planned(job: JobSpec) -> Plan:
    asked = job.training.workers
    return make_plan(job, declared_view(nodes=asked.max, cpus=asked.cpus, gpus=asked.gpus))


def made(job: JobSpec, **target: Any) -> Files:
    return manifests(job, planned(job), replace(TARGET, **target), variables=["TEXTS"])


def rendered(job: JobSpec, **target: Any) -> Render:
    return render(job, planned(job), replace(TARGET, **target))


def objects(files: Files) -> list[dict[str, Any]]:
    return [found for name, documents in files.items() if name.endswith(".yaml") for found in documents]


def cluster_in(files: Files, name: str) -> dict[str, Any]:
    spec = files[name][0]["spec"]
    return spec if CLUSTERS[name] is None else spec[CLUSTERS[name]]


def templates(files: Files) -> list[dict[str, Any]]:
    found = [files["rayjob.yaml"][0]["spec"]["submitterPodTemplate"]]
    for name in CLUSTERS:
        cluster = cluster_in(files, name)
        found += [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return found


def every(value: Any, key: str) -> list[Any]:
    """All values of a key, however deep."""
    if isinstance(value, dict):
        here = [value[key]] if key in value else []
        return here + [found for item in value.values() for found in every(item, key)]
    return [found for item in value for found in every(item, key)] if isinstance(value, list) else []


@settings(max_examples=20, deadline=None)
@given(name=NAMES, workers=WORKERS, serve=SERVE, per_pod=st.integers(1, 8))
def test_any_job(name: str, workers: dict[str, int], serve: dict[str, Any], per_pod: int) -> None:
    files = made(job_of(name, workers, serve=serve), workers_per_pod=per_pod)
    per_pod = min(per_pod, workers["max"])
    for file in ("rayjob.yaml", "raycluster.yaml"):
        cluster = cluster_in(files, file)
        (group,) = cluster["workerGroupSpecs"]
        for bound in ("min", "max"):
            pods = group[f"{bound}Replicas"]
            assert (pods - 1) * per_pod < workers[bound] <= pods * per_pod
        assert group["replicas"] == group["minReplicas"]
        assert cluster["enableInTreeAutoscaling"] == (group["maxReplicas"] > group["minReplicas"])
        check_resources(group["template"], workers["cpus"] * per_pod, workers["gpus"] * per_pod)
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        check_resources(cluster["headGroupSpec"]["template"], 2, 0)
    (group,) = cluster_in(files, "rayservice.yaml")["workerGroupSpecs"]
    assert {"min": group["minReplicas"], "max": group["maxReplicas"]} == serve["replicas"]
    check_resources(group["template"], serve["cpus"], serve["gpus"])
    check_references(files)


def check_resources(template: dict[str, Any], cpus: int, gpus: int) -> None:
    (container,) = template["spec"]["containers"]
    asked = container["resources"]["requests"]
    assert container["resources"]["limits"] == asked
    assert asked["cpu"] == str(cpus)
    assert asked.get("nvidia.com/gpu") == (str(gpus) if gpus else None)
    tolerated = [each["key"] for each in template["spec"].get("tolerations", [])]
    assert tolerated == (["nvidia.com/gpu"] if gpus else [])
    (shared,) = [each["emptyDir"] for each in template["spec"]["volumes"] if "emptyDir" in each]
    assert shared["medium"] == "Memory"
    assert int(shared["sizeLimit"].removesuffix("Gi")) < int(asked["memory"].removesuffix("Gi"))


def check_references(files: Files) -> None:
    """ConfigMap, claim, secrets, labels and mounts that anything names are there."""
    named: dict[str, set[str]] = {}
    for found in [*objects(files), *files["secret.yaml.example"]]:
        named.setdefault(found["kind"], set()).add(found["metadata"]["name"])
    (policy,) = [found for found in objects(files) if found["kind"] == "NetworkPolicy"]
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    for name in CLUSTERS:
        assert cluster_in(files, name)["authOptions"]["secretName"] in named["Secret"]
    for template in templates(files):
        assert chosen <= template["metadata"]["labels"].items()
        spec = template["spec"]
        assert {each["name"] for each in every(spec, "configMap")} <= named["ConfigMap"]
        assert set(every(spec, "claimName")) <= named["PersistentVolumeClaim"]
        assert {each["name"] for each in every(spec, "secretRef")} <= named["Secret"]
        volumes = {each["name"] for each in spec.get("volumes", [])}
        assert {each["name"] for each in every(spec["containers"], "volumeMounts") for each in each} == volumes


def test_names_are_what_kuberay_takes_and_never_the_same() -> None:
    """1.7: 53 characters for a RayCluster, 47 for the others, and one Service `NAME-head-svc` for each."""
    for name in ("tiny", "A" * 63):
        files = made(job_of(name))
        names = [files[file][0]["metadata"]["name"] for file in CLUSTERS]
        assert len(set(names)) == len(names)
        for found, most in zip(names, (47, 53, 47), strict=True):
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
            assert len(found) <= most


def test_the_driver_reads_the_job_that_the_config_map_holds() -> None:
    files = made(job_of())
    words = files["rayjob.yaml"][0]["spec"]["entrypoint"].split()
    head = cluster_in(files, "rayjob.yaml")["headGroupSpec"]["template"]["spec"]["containers"][0]
    (folder,) = [mount["mountPath"] for mount in head["volumeMounts"] if mount["name"] == "job"]
    assert words[:3] == ["slipway", "run", f"{folder}/job.yaml"]
    assert words[words.index("--store") + 1] in [mount["mountPath"] for mount in head["volumeMounts"]]
    held = files["configmap.yaml"][0]["data"]
    assert list(held) == ["job.yaml"]
    assert JobSpec.model_validate(yaml.safe_load(held["job.yaml"])) == job_of()


def test_a_service_takes_traffic_where_its_port_is_open_and_its_proxy_answers() -> None:
    files = made(job_of(serve={"port": 9001}))
    config = yaml.safe_load(files["rayservice.yaml"][0]["spec"]["serveConfigV2"])
    assert config["http_options"] == {"host": "0.0.0.0", "port": 9001}
    worker = cluster_in(files, "rayservice.yaml")["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert {"name": "serve", "containerPort": 9001} in worker["ports"]
    assert worker["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 9001}
    policy = files["networkpolicy.yaml"][0]["spec"]
    from_anywhere = [rule["ports"] for rule in policy["ingress"] if "from" not in rule]
    assert from_anywhere == [[{"protocol": "TCP", "port": 9001}]]


def test_another_run_to_serve_moves_the_service_to_a_new_cluster() -> None:
    one, other = (
        cluster_in(made(job_of(), run=run), "rayservice.yaml") for run in ("tiny-0123456789ab", "tiny-ba9876543210")
    )
    assert one["headGroupSpec"]["template"]["metadata"] != other["headGroupSpec"]["template"]["metadata"]


def test_nothing_but_references_to_secrets() -> None:
    files = made(job_of())
    assert [found["kind"] for found in objects(files) if found["kind"] == "Secret"] == []
    for secret in files["secret.yaml.example"]:
        assert set(secret["stringData"].values()) == {PLACEHOLDER}
    for template in templates(files):
        for container in template["spec"]["containers"]:
            assert not {"RAY_AUTH_TOKEN", "WANDB_API_KEY"} & {each["name"] for each in container.get("env", [])}


def test_what_the_job_reads_of_the_environment_has_a_place_in_the_secret() -> None:
    job = job_of(data={"sources": [{"path": "${env:TEXTS}", "format": "text"}], "tokenizer": {"train": "bpe"}})
    found = rendered(job)
    assert "TEXTS: REPLACE-ME" in found.files["secret.yaml.example"]
    assert any("TEXTS" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"serve": {"accounts": "postgresql://slipway:hunter2@db/accounts"}}, "serve.accounts"),
        (
            {"data": {"sources": [{"path": "https://me:hunter2@texts/all"}], "tokenizer": {"train": "bpe"}}},
            "data.sources.0.path",
        ),
    ],
)
def test_a_job_that_holds_a_secret_is_refused(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(JobError, match=key) as refused:
        rendered(job_of(**sections))
    assert "hunter2" not in str(refused.value)


def test_pods_run_as_nobody_who_may_do_more() -> None:
    for template in templates(made(job_of())):
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        for container in template["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]


def test_what_prometheus_is_told_is_a_port_of_the_pod() -> None:
    for template in templates(made(job_of()))[1:]:  # all but what submits
        told = template["metadata"]["annotations"]
        ports = [port["containerPort"] for port in template["spec"]["containers"][0]["ports"]]
        assert (told["prometheus.io/scrape"], int(told["prometheus.io/port"]) in ports) == ("true", True)


def test_the_files_are_the_manifests_and_the_same_bytes_each_time() -> None:
    job = job_of()
    files = rendered(job).files
    assert files == rendered(job).files
    found = {name: list(yaml.load_all(text, Loader=yaml.CSafeLoader)) for name, text in files.items()}
    assert found == manifests(job, planned(job), TARGET)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("namespace", "My_Space"),
        ("storage_class", "-nfs"),
        ("storage_size", "100GB"),
        ("store", "store"),
        ("store", "/"),
        ("image", "slip way"),
    ],
)
def test_what_kubernetes_does_not_take_is_refused(setting: str, value: str) -> None:
    with pytest.raises(JobError, match=f"--{setting.replace('_', '-')}") as refused:
        rendered(job_of(), **{setting: value})
    assert refused.value.fix


def test_what_is_given_reaches_every_object() -> None:
    files = made(job_of(), namespace="ml", storage_class="nfs", storage_size="2Ti")
    assert {found["metadata"]["namespace"] for found in objects(files)} == {"ml"}
    (claim,) = [found["spec"] for found in objects(files) if found["kind"] == "PersistentVolumeClaim"]
    assert claim == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "2Ti"}},
        "storageClassName": "nfs",
    }
    assert {container["image"] for each in templates(files) for container in each["spec"]["containers"]} == {
        TARGET.image
    }


def test_an_encoder_has_a_service_as_a_decoder_has() -> None:
    data = {
        "sources": [{"path": "s3://texts/all", "format": "text"}],
        "tokenizer": {"train": "wordpiece"},
        "sentence_ends": True,
    }
    for job in (
        job_of(),
        job_of(data=data, model={"kind": "bert", "layers": 2, "width": 64, "heads": 2, "context": 64}),
    ):
        found = rendered(job)
        assert "rayservice.yaml" in found.files


def test_relative_paths_and_lonely_gpus_are_pointed_out() -> None:
    data = {"sources": [{"path": "./text", "format": "text"}], "tokenizer": {"train": "bpe"}}
    warnings = " ".join(rendered(job_of(data=data, workers={"min": 2, "gpus": 1})).warnings)
    assert "data.sources.0.path is ./text" in warnings
    assert "--workers-per-pod" in warnings


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/home/ana/text", "in the image; "),
        ("text", "in the image, beside its jobs/; "),
        ("/store/text", None),
        ("${env:TEXTS}/a", None),
    ],
)
def test_sources_that_a_pod_may_not_have_are_pointed_out(path: str, where: str | None) -> None:
    data = {"sources": [{"path": path, "format": "text"}], "tokenizer": {"train": "bpe"}}
    told = [warning for warning in rendered(job_of(data=data)).warnings if "data.sources.0.path" in warning]
    expected = f"data.sources.0.path is {path}: pods look for it {where}"
    assert bool(told) is (where is not None)
    assert all(warning.startswith(expected) for warning in told)
