"""What `slipway doctor --address` prints for people: a table of machines, and a line for each question."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.cli_print import print_checks


def print_cluster(document: dict[str, Any], console: Console | None = None) -> None:
    """The machines of a cluster, what lies between them, and what is wrong."""
    out = console or Console()
    table = Table()
    for name in ("machine", "CPUs", "GPUs", "versions", "disk free", "/dev/shm", "clock", "write", "read"):
        table.add_column(name, overflow="fold")
    for node in document["nodes"]:
        table.add_row(*_row(node))
    out.print(table)
    print_checks(document)


def _row(node: dict[str, Any]) -> list[str]:
    name = f"{node['host']} {node['address']}" if node["host"] else str(node["address"])
    gpus = f"{node['gpus']:g}" + (f" {node['gpu_name']}" if node["gpu_name"] else "")
    known = [name, f"{node['cpus']:g}", gpus]
    if node["problem"] is not None:
        return [*known, node["problem"]]
    versions = f"slipway {node['slipway']} {node['code']}, torch {node['torch']}, ray {node['ray']}"
    return [
        *known,
        f"{versions}, python {node['python']}",
        _size(node["disk_free_bytes"]),
        _size(node["shm_free_bytes"]),
        f"{node['clock_skew_s']:+.3f} s",
        _speed(node["write_bytes_per_s"]),
        _speed(node["read_bytes_per_s"]),
    ]


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def _speed(bytes_per_s: float | None) -> str:
    return "" if bytes_per_s is None else f"{bytes_per_s / 1e6:,.0f} MB/s"
