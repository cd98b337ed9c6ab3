"""KubeRay's three: a cluster for one job, one that stays, and one that serves.

Each has a name of its own: KubeRay names a head's Service after any of them, whatever its kind.
"""

from __future__ import annotations

import shlex
from typing import Any

from orchestrator.identity import content_hash
from orchestrator.job import JobSpec
from orchestrator.job_file import to_yaml
from orchestrator.kubernetes.pods import CLOSED, head_pod, submitter_pod, worker_pod
from orchestrator.kubernetes.sizes import OBJECT_STORE_BYTES, Group, head_size, serving_group, training_group
from orchestrator.kubernetes.surroundings import job_map_name
from orchestrator.kubernetes.values import JOB_FOLDER, TOKEN_SECRET, Target, an_object, dns_name, labels
from orchestrator.plan import Plan

_API = "ray.io/v1"
_RETRIES = 3
"""Of the whole job, each on a new cluster: it goes on from the newest checkpoint in the store."""
_SUBMISSIONS = 10
"""Of the job to the same cluster: one for each head that is lost, whose place KubeRay gives to another."""
_KEPT_S = 600
"""How long the cluster of a job that has ended stays, for its logs."""
_IDLE_S = 600
_STOP_WAIT_S = 90
"""How long `ray job stop` lets a run finish its step, save and end before it kills it."""
_BUILDERS = "orchestrator.serve.deployment.config_app"


def ray_job(job: JobSpec, plan: Plan, target: Target) -> dict[str, Any]:
    """One job from its data to its export, on a cluster that goes when it has ended."""
    name = dns_name(job.name)
    command = ["slipway", "run", f"{JOB_FOLDER}/job.yaml", "--until", "export", "--address", "auto"]
    spec = {
        "submissionMode": "K8sJobMode",
        "entrypoint": shlex.join([*command, "--store", target.store, "--json"]),
        "runtimeEnvYAML": to_yaml({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}}),
        "backoffLimit": _RETRIES,
        "submitterConfig": {"backoffLimit": _SUBMISSIONS},
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEPT_S,
        "submitterPodTemplate": submitter_pod(name, target),
        "rayClusterSpec": _training_cluster(job, plan, target, job_map=job_map_name(name)),
    }
    return an_object(_API, "RayJob", name, target, labels=labels(name), spec=spec)


def ray_cluster(job: JobSpec, plan: Plan, target: Target) -> dict[str, Any]:
    """A cluster of the job's size that stays, for `slipway submit`."""
    name = dns_name(job.name)
    spec = _training_cluster(job, plan, target, job_map=None)
    return an_object(_API, "RayCluster", f"{name}-cluster", target, labels=labels(name), spec=spec)


def ray_service(job: JobSpec, plan: Plan, target: Target) -> dict[str, Any]:
    """The export of a run, served behind the gateway; another one comes up beside it before it is replaced."""
    name, group, port = dns_name(job.name), serving_group(job, plan), job.serve.port
    config = serve_config(job, target)
    # KubeRay starts a new cluster, and moves requests to it once it answers, where a pod's template has changed.
    head = head_pod(
        name, target, head_size(plan), serve_port=port, annotations={"slipway-serves": content_hash(config)}
    )
    worker = worker_pod(name, target, group.size, serve_port=port)
    spec = {
        "upgradeStrategy": {"type": "NewCluster"},
        "serveConfigV2": to_yaml(config),
        "rayClusterConfig": _cluster(target, head, "replicas", group, worker),
    }
    return an_object(_API, "RayService", f"{name}-api", target, labels=labels(name), spec=spec)


def serve_config(job: JobSpec, target: Target) -> dict[str, Any]:
    """Ray Serve's own file: the gateway, and the replicas of the one version that it hands requests to."""
    application = f"{dns_name(job.name)}-v1"
    arguments = {
        "store": target.store,
        "run": target.run or f"{job.name}-",  # the beginning of the run's name; its hash depends on the data
        "application": application,
        "settings": job.serve.model_dump(mode="json"),
    }
    gateway, version = f"{_BUILDERS}:gateway", f"{_BUILDERS}:version"
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": job.serve.port},
        "applications": [
            {"name": "slipway", "route_prefix": "/", "import_path": gateway, "args": arguments},
            {"name": application, "route_prefix": None, "import_path": version, "args": arguments},
        ],
    }


def _training_cluster(job: JobSpec, plan: Plan, target: Target, *, job_map: str | None) -> dict[str, Any]:
    name, group = dns_name(job.name), training_group(job, plan, target.workers_per_pod)
    head = head_pod(name, target, head_size(plan), serve_port=job.serve.port, job_map=job_map)
    return _cluster(target, head, "workers", group, worker_pod(name, target, group.size))


def _cluster(
    target: Target, head: dict[str, Any], group_name: str, group: Group, worker: dict[str, Any]
) -> dict[str, Any]:
    """A RayClusterSpec in token mode. KubeRay hands the token to each container, as a reference to the Secret."""
    grows = group.most > group.least
    head["spec"]["automountServiceAccountToken"] = grows  # for the autoscaler beside it, which asks for pods
    small = {"cpu": "500m", "memory": "512Mi"}
    autoscaler = {
        "version": "v2",
        "idleTimeoutSeconds": _IDLE_S,
        "upscalingMode": "Default",
        "securityContext": CLOSED,
        "resources": {"limits": dict(small), "requests": dict(small)},
    }
    parameters = {"object-store-memory": str(OBJECT_STORE_BYTES)}
    return {
        "rayVersion": target.ray_version,
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        "enableInTreeAutoscaling": grows,
        **({"autoscalerOptions": autoscaler} if grows else {}),
        "headGroupSpec": {
            # No CPUs for work: what trains or prepares beside the driver would take its memory.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", **parameters},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": group_name,
                "replicas": group.least,
                "minReplicas": group.least,
                "maxReplicas": group.most,
                "rayStartParams": dict(parameters),
                "template": worker,
            }
        ],
    }
