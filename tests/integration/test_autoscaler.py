"""Ray's real autoscaler with fake machines of cluster.yaml's types: a wait brings them up, its end takes them down."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from harness import environment, free_port
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from orchestrator.cluster.connect import prepare_environment

pytestmark = pytest.mark.timeout(240)
JOB = """\
name: gang
data: {sources: [{path: none.txt}], tokenizer: {vocab_size: 320}}
model: {layers: 1, width: 32, heads: 2, context: 16}
train: {steps: 1, batch_tokens: 256}
"""
HEAD = "ray.head.default"
"""The only name that the fake provider knows for a head's type."""
COMMANDS = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
"""What `ray up` would run on machines: on fake ones nothing."""
SMALL = {"CPU": 2, "GPU": 2, "accelerator_type:H100": 1}
"""In the place of a machine with eight GPUs and 192 cores."""


def fake_config(port: int) -> dict[str, Any]:
    """cluster.yaml with fake machines, small ones; the head has a core and no GPU."""
    declared = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text(encoding="utf-8"))
    types = dict(declared["available_node_types"])
    types[HEAD] = {**types.pop("head"), "resources": {"CPU": 1}, "node_config": {}}
    for name, kind in types.items():
        if name != HEAD:
            types[name] = {**kind, "node_config": {}, "resources": SMALL if "GPU" in kind["resources"] else {"CPU": 1}}
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    at = {"type": "external", "module": module, "gcs_address": f"127.0.0.1:{port}"}
    only = ("launch_multiple", "use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check")
    provider = {**at, **dict.fromkeys(only, True)}
    kept = {key: declared[key] for key in ("cluster_name", "max_workers")}
    return {
        **{f"{name}_commands": [] for name in COMMANDS},
        **{"file_mounts": {}, "cluster_synced_files": [], "auth": {}, "upscaling_speed": 1.0},
        **kept,
        "provider": {**provider, "head_node_id": FAKE_HEAD_NODE_ID},
        "available_node_types": types,
        "head_node_type": HEAD,
        "idle_timeout_minutes": 0.1,
    }


@pytest.fixture
def address() -> Iterator[str]:
    prepare_environment()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="slipway-head-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        config = Path(folder) / "cluster.yaml"
        config.write_text(yaml.safe_dump(fake_config(port)), encoding="utf-8")
        args = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
            "--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=0", "--include-dashboard=false",
            f"--temp-dir={folder}", "--object-store-memory=100000000", f"--autoscaling-config={config}",
        ]  # fmt: skip
        more = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
        more |= dict.fromkeys(["RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"], FAKE_HEAD_NODE_ID)
        head = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(**more))
        try:
            wait_for(port, head)
            yield f"127.0.0.1:{port}"
        finally:
            end(port, head)


def wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    """Until its control service knows a machine."""
    from ray._raylet import GcsClient

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            answers = probe.connect_ex(("127.0.0.1", port)) == 0
        if answers and GcsClient(address=f"127.0.0.1:{port}").get_all_node_info(timeout=5):
            return
        time.sleep(0.3)
    pytest.fail("the head did not start")


def end(port: int, head: subprocess.Popen[bytes]) -> None:
    """The head, and the raylets that its autoscaler has started, which are nobody's children."""
    head.kill()
    for process in psutil.process_iter(["cmdline"]):
        if any(f"127.0.0.1:{port}" in word for word in process.info["cmdline"] or ()):
            process.kill()
    head.wait(10)


def test_a_gang_that_waits_brings_machines_up_and_its_end_takes_them_down(address: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    script = Path(__file__).parents[1] / "autoscaled.py"
    done = subprocess.run(
        [sys.executable, script, address, job], capture_output=True, text=True, timeout=200, env=environment(),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["bounds"] == {"gpu_spot": [2, 4], "gpu_on_demand": [2, 2], "data_worker": [0, 4]}
    assert "asks for at least 13 worker(s) of 1 CPU(s) and 1 GPU(s); 12 fit on " in found["refused"]
    assert found["refused"].endswith("which is all that its autoscaler may start")
    assert found["before"] == []  # what was refused has started nothing
    assert found["room"] == [2, 2]  # as many as it needs, and no machine more
    assert (found["waiting"], found["left"]) == ([["gang-0123", True]], [])
    assert found["after"] == []
