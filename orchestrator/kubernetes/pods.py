"""Pod templates of Ray's head, of its workers, and of what submits a job."""

from __future__ import annotations

from typing import Any

from orchestrator.kubernetes.sizes import PodSize, gibibytes
from orchestrator.kubernetes.values import (
    ENVIRONMENT_SECRET,
    JOB_FOLDER,
    STORE_CLAIM,
    Target,
    environment_of,
    labels,
)

METRICS_PORT = 8080
DASHBOARD_PORT = 8265
_AGENT_PORT = 52365
USER = 1000
"""Of the image, as its Dockerfile makes it: nobody on the machine."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_preload_python_modules": "orchestrator.cluster.preload",  # what stands by has its imports done
    "RAY_worker_niceness": "0",  # at Ray's own 15 whatever else runs on the machine would starve the workers
    # What Ray Serve reads when its processes start: who closes connections whose headers do not come, how soon it hears
    # of load, and how soon a proxy that has died is replaced. As where we start Serve ourselves.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "orchestrator.serve.api.listener:guard_listeners",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # One event loop in each process: every message would wake three threads in turn.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}

CLOSED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
_SMALL = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "512Mi"}}


def head_pod(
    name: str,
    target: Target,
    size: PodSize,
    *,
    serve_port: int,
    job_map: str | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The pod of Ray's head. `job_map` is a ConfigMap with the job's file, where the driver starts in this pod."""
    ports = [("gcs-server", 6379), ("dashboard", DASHBOARD_PORT), ("metrics", METRICS_PORT), ("serve", serve_port)]
    pod = _ray_pod("ray-head", name, target, size, ports, _alive())
    pod["metadata"]["annotations"] |= annotations or {}
    if job_map is not None:
        mount = {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True}
        pod["spec"]["containers"][0]["volumeMounts"].append(mount)
        pod["spec"]["volumes"].append({"name": "job", "configMap": {"name": job_map}})
    return pod


def worker_pod(name: str, target: Target, size: PodSize, *, serve_port: int | None = None) -> dict[str, Any]:
    """A pod of workers or of replicas. With `serve_port` it is ready where the service's own proxy answers."""
    ports = [("metrics", METRICS_PORT), *([("serve", serve_port)] if serve_port else [])]
    ready = _probe("/-/healthz", serve_port, failures=1) if serve_port else _alive()
    pod = _ray_pod("ray-worker", name, target, size, ports, ready)
    pod["spec"]["automountServiceAccountToken"] = False
    return pod


def submitter_pod(name: str, target: Target) -> dict[str, Any]:
    """The pod in which KubeRay runs `ray job submit` and follows the log; KubeRay adds the command and the token."""
    container = {"name": "submitter", "image": target.image, "securityContext": CLOSED, "resources": _SMALL}
    spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "securityContext": _user()}
    return {"metadata": {"labels": labels(name)}, "spec": {**spec, "containers": [container]}}


def _ray_pod(
    container_name: str,
    name: str,
    target: Target,
    size: PodSize,
    ports: list[tuple[str, int]],
    ready: dict[str, Any],
) -> dict[str, Any]:
    container = {
        "name": container_name,
        "image": target.image,
        "env": environment_of({**_ENVIRONMENT, "SLIPWAY_STORE": target.store}),
        "envFrom": [{"secretRef": {"name": ENVIRONMENT_SECRET, "optional": True}}],
        "ports": [{"name": port, "containerPort": number} for port, number in ports],
        "resources": size.resources(),
        "securityContext": CLOSED,
        "livenessProbe": _alive(failures=24),
        "readinessProbe": ready,
        "volumeMounts": [
            {"name": "store", "mountPath": target.store},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # KubeRay puts a new pod in the place of one that ends
        "securityContext": _user(),
        "containers": [container],
        "volumes": [
            {"name": "store", "persistentVolumeClaim": {"claimName": STORE_CLAIM}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": gibibytes(size.shared_bytes)}},
        ],
    }
    if size.gpus:
        spec["tolerations"] = [dict(_GPU_TOLERATION)]
    return {"metadata": {"labels": labels(name), "annotations": _scraped()}, "spec": spec}


def _scraped() -> dict[str, str]:
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(METRICS_PORT),
        "prometheus.io/path": "/metrics",
    }


def _alive(failures: int = 10) -> dict[str, Any]:
    """Ray's agent of the pod, which asks the raylet, and on the head the control service: it needs no token."""
    return _probe("/api/healthz", _AGENT_PORT, failures)


def _probe(path: str, port: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": 10,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _user() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
