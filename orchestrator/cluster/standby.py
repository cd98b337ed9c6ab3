"""Have Ray start processes before there is work for them, in the environment of the actors that they will become.

A process that trains takes seconds to start, nearly all of it imports. An actor takes an idle process of its own
environment where there is one: 0.04 s instead of 5.2 s, measured with torch and DeepSpeed. No API of Ray's asks for
idle processes; the raylet's own service does (`PrestartWorkers` in node_manager.proto, version 2.60).
"""

from __future__ import annotations

import contextlib
import json
import threading

_ASK_LIMIT_S = 5.0
_KEEP_S = 30 * 24 * 3600
"""The raylet ends other idle processes within seconds; these at the end of their job."""


def stand_by(environment: str, *, machine: str, processes: int) -> None:
    """Have so many processes wait on a machine (Ray's id) for actors of a runtime environment (Ray's JSON).

    Returns at once. Where memory runs low, Ray ends those that wait first.

    Raises:
        Exception: Ray's or gRPC's; the machine may have gone, or another version of Ray may not know the call.
    """
    import ray
    from google.protobuf import json_format
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
    from ray.runtime_env import RuntimeEnv

    (node,) = (each for each in ray.nodes() if each["NodeID"] == machine)  # type: ignore[no-untyped-call]
    request = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]
        language=common_pb2.Language.PYTHON,  # type: ignore[attr-defined]
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        keep_alive_duration_secs=_KEEP_S,
        num_workers=processes,
    )
    described = get_runtime_env_info(RuntimeEnv(**json.loads(environment)), serialize=True)
    json_format.Parse(described, request.runtime_env_info)
    request.runtime_env_info.serialized_runtime_env = environment  # letter by letter: Ray compares hashes of it
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.PrestartWorkers(request, timeout=_ASK_LIMIT_S)


def have_another_stand_by(*, after_s: float) -> None:
    """In an actor: have a process wait on its machine, in a while, for the next actor of the same environment.

    Each that starts takes the one that waits, and asks for another: there is one as a rule.
    """

    def ask() -> None:
        with contextlib.suppress(Exception):  # then the next one starts cold
            stand_by(environment_of_this_process(), machine=this_machine(), processes=1)

    timer = threading.Timer(after_s, ask)
    timer.daemon = True
    timer.start()


def environment_of_this_process() -> str:
    """The runtime environment of the actor that asks, as Ray wrote it."""
    import ray

    return str(ray.get_runtime_context().get_runtime_env_string())  # type: ignore[no-untyped-call]


def this_machine() -> str:
    """Ray's id of the machine that this process runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())
