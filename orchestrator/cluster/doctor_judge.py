"""What `slipway doctor --address` makes of what it was told: a line for each question, with the fix. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestrator.cluster.doctor import WANTED_DISK_BYTES, WANTED_SHM_BYTES, Check

ALIKE = ("python", "slipway", "code", "torch", "ray", "deepspeed")
"""What must be the same on all machines."""
_SKEW_S = 2.0
"""Times of events, and of checkpoints that are due by the clock, come from different machines."""
_SLOW_BYTES_PER_S = 20e6
"""A store below that makes every checkpoint a long one."""
_SLOW_NETWORK_BYTES_PER_S = 100e6

Facts = dict[str, Any]
"""Of one machine."""


def judge(nodes: Sequence[Facts], network: Facts | None, store: str) -> list[Check]:
    """A line for each question; `nodes` hold what `examine_cluster` says of each machine."""
    answered = [node for node in nodes if node["problem"] is None]
    checks = [_nodes(nodes)]
    if not answered:
        return checks
    checks += [*_versions(answered), _token(answered), _clock(answered), *_room(answered, store)]
    checks.append(_storage(answered, store))
    if network is not None:
        checks.append(_network(network))
    return checks


def _nodes(nodes: Sequence[Facts]) -> Check:
    wrong = [f"{name_of(node)}: {node['problem']}" for node in nodes if node["problem"] is not None]
    cpus, gpus = sum(node["cpus"] for node in nodes), sum(node["gpus"] for node in nodes)
    found = f"{len(nodes)} machine(s) with {cpus:g} CPUs and {gpus:g} GPUs answer"
    fix = "restart Ray there (`ray stop`, then `ray start` as docs/cluster.md says), or take the machine out"
    return Check("machines", not wrong, "; ".join(wrong) or found, fix)


def _versions(nodes: Sequence[Facts]) -> Iterable[Check]:
    for name in ALIKE:
        usual = Counter(str(node[name]) for node in nodes).most_common(1)[0][0]
        others = [f"{node[name]} on {name_of(node)}" for node in nodes if str(node[name]) != usual]
        if others or usual == "None":
            found = f"{usual}, but {', '.join(others)}" if others else "not installed"
            yield Check(name, False, found, "install the same on every machine: `make setup` of one checkout")
        else:
            yield Check(name, True, f"{usual} everywhere")


def _token(nodes: Sequence[Facts]) -> Check:
    fix = "start Ray there with RAY_AUTH_MODE=token: without it, whoever reaches a port runs code"
    return _each("token mode", nodes, lambda node: None if node["token_mode"] else "off", "on everywhere", fix)


def _clock(nodes: Sequence[Facts]) -> Check:
    def off(node: Facts) -> str | None:
        least = abs(node["clock_skew_s"]) - node["clock_error_s"]
        return f"{node['clock_skew_s']:+.1f} s" if least > _SKEW_S else None

    most = max(abs(node["clock_skew_s"]) for node in nodes)
    return _each("clocks", nodes, off, f"within {most:.3f} s of this machine's", "let NTP (chrony) set the clocks")


def _room(nodes: Sequence[Facts], store: str) -> Iterable[Check]:
    for key, name, wanted, fix in (
        ("disk_free_bytes", "disk", WANTED_DISK_BYTES, f"free some space, or give a larger --store than {store}"),
        ("tmp_free_bytes", "/tmp", WANTED_SHM_BYTES, "free /tmp: Ray writes its logs and spilled objects there"),
        ("shm_free_bytes", "/dev/shm", WANTED_SHM_BYTES, "free /dev/shm or mount a larger one"),
    ):
        least = min(node[key] for node in nodes)
        yield _each(name, nodes, _short_of(key, wanted), f"at least {least / 1e9:.1f} GB free", fix)


def _short_of(key: str, wanted_bytes: int) -> Callable[[Facts], str | None]:
    return lambda node: f"{node[key] / 1e9:.1f} GB free" if node[key] < wanted_bytes else None


def _storage(nodes: Sequence[Facts], store: str) -> Check:
    def slow(node: Facts) -> str | None:
        if node["storage_problem"] is not None:
            return str(node["storage_problem"])
        speed = min(node["write_bytes_per_s"], node["read_bytes_per_s"])
        return f"{speed / 1e6:.0f} MB/s" if speed < _SLOW_BYTES_PER_S else None

    write = min((node["write_bytes_per_s"] or 0.0 for node in nodes), default=0.0)
    read = min((node["read_bytes_per_s"] or 0.0 for node in nodes), default=0.0)
    found = f"all write {write / 1e6:,.0f} MB/s at least and read {read / 1e6:,.0f}, at the same time, in {store}"
    fix = "give --store a folder on a disk that all machines share and that is fast enough (docs/cluster.md)"
    return _each("storage", nodes, slow, found, fix)


def _network(network: Facts) -> Check:
    fix = (
        "let all ports through between the machines; where they have several networks, name the fast one in "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME before Ray starts"
    )
    if network["problem"] is not None:
        return Check("network", False, f"no all-reduce between the machines: {network['problem']}", fix)
    speed = f"{network['bytes_per_s'] / 1e9:.2f} GB/s each way, {network['latency_s'] * 1e3:.2f} ms a small one"
    found = f"all-reduce by {network['backend']} over {network['machines']} machines: {speed}"
    return Check("network", network["bytes_per_s"] >= _SLOW_NETWORK_BYTES_PER_S, found, fix)


def _each(name: str, nodes: Sequence[Facts], wrong: Callable[[Facts], str | None], found: str, fix: str) -> Check:
    problems = [f"{said} on {name_of(node)}" for node in nodes if (said := wrong(node)) is not None]
    return Check(name, not problems, "; ".join(problems) or found, fix)


def name_of(node: Facts) -> str:
    """For people: host and address."""
    return f"{node['host']} ({node['address']})" if node.get("host") else str(node["address"])
