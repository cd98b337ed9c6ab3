"""What listens where, as `ss` tells it, and what each port says to somebody without the token."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.serve.RayServeAPIService/ListApplications",
    "/ray.serve.ASGIService/HandleRequest",
)
_PATHS = ("/api/jobs/", "/api/version", "/get_runtime_envs_info", "/v1/models", "/metrics", "/")
_LIMIT_S = 10.0
_SILENT_S = 3.0
_STORE_LIMIT_S = 30.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""With what a client of HTTP/2 begins: a server of it answers with settings, one of HTTP/1 with an error."""
_SETTINGS = 4
_KNOWN = ("DashboardAgent", "RuntimeEnvAgent")


@dataclass(frozen=True)
class Port:
    """A port that listens."""

    process: str
    """Whose it is, as Ray's processes name themselves."""
    host: str
    number: int

    @property
    def where(self) -> str:
        """`127.0.0.1`, `all interfaces`, or `own address`."""
        if self.host in ("0.0.0.0", "*", "[::]"):
            return "all interfaces"
        return "127.0.0.1" if self.host.startswith(("127.", "[::1]", "[::ffff:127.")) else "own address"

    @property
    def reached_at(self) -> str:
        return "127.0.0.1" if self.where != "own address" else self.host.strip("[]").removeprefix("::ffff:")


def family(pid: int) -> set[int]:
    """A process and all below it."""
    own = psutil.Process(pid)
    return {pid, *(child.pid for child in own.children(recursive=True))}


def listening(pids: Iterable[int]) -> set[Port]:
    """Every TCP port that one of the processes listens on."""
    ours, found = set(pids), set()
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    for line in lines:
        host, _, number = line.split()[3].rpartition(":")
        owners = ours & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
        found |= {Port(_name(pid), host.partition("%")[0], int(number)) for pid in owners}
    return found


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
    except OSError:
        words = []
    if not words:
        return "gone"
    if words[0].startswith("ray::ServeReplica:slipway:gateway"):
        return "gateway"
    if words[0].startswith("ray::"):
        name = re.split(r"[.:(]", words[0].removeprefix("ray::"))[0]
        return name if name in _KNOWN else "worker"
    signs = {"orchestrator.cli": "slipway", "ray.util.client.server": "client server"}
    signs |= {"dashboard.py": "dashboard", "monitor.py": "monitor"}
    for word in words:
        if name := signs.get(word) or signs.get(Path(word).name):
            return name
    return Path(words[0]).name


def answer(port: Port) -> str:
    """What a stranger gets: `UNAUTHENTICATED`, an HTTP code, `open: ...`, or `silent` where nothing useful comes."""
    said = _first_bytes(port)
    if said[3:4] == bytes([_SETTINGS]):
        return _grpc(port)
    if said and (spoken := _http(port)) is not None:
        return spoken
    return "open: torch's store" if port.process == "worker" and _is_torch_store(port) else "silent"


def _first_bytes(port: Port) -> bytes:
    try:
        with socket.create_connection((port.reached_at, port.number), timeout=_SILENT_S) as connection:
            connection.sendall(_PREFACE)
            return connection.recv(64)
    except OSError:
        return b""


def _grpc(port: Port) -> str:
    codes = set()
    with grpc.insecure_channel(f"{port.reached_at}:{port.number}") as channel:
        for call in _CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=_LIMIT_S)
            except grpc.RpcError as error:
                codes.add(error.code().name)  # type: ignore[attr-defined]
            else:
                return f"open: {call}"
    refused = "UNAUTHENTICATED" in codes and codes <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}
    return "UNAUTHENTICATED" if refused else f"open: gRPC {sorted(codes)}"


def _http(port: Port) -> str | None:
    """The most that any path gives; None where it is no HTTP."""
    said = {path: get(f"http://{port.reached_at}:{port.number}{path}") for path in _PATHS}
    if {code for code, _ in said.values()} == {None}:
        return None
    served = [path for path, (code, body) in said.items() if code == 200 and not _is_empty_page(body)]
    if served and all(b"# HELP" in said[path][1] for path in served):
        return "open: metrics"
    if "/v1/models" in served:
        return "open: the service"
    if served:
        return f"open: {', '.join(served)}"
    codes = {code for code, _ in said.values()}
    return next((str(code) for code in (401, 403) if code in codes), f"open: {codes}")


def _is_empty_page(body: bytes) -> bool:
    """The dashboard's own shell, a static file, which is refused all that it asks for."""
    return body.lower().lstrip().startswith(b"<!doctype html")


def get(url: str, token: str | None = None) -> tuple[int | None, bytes]:
    """Status and body of a GET; None where it is no HTTP."""
    request = urllib.request.Request(url, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=_LIMIT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, http.client.HTTPException):
        return None, b""


def _is_torch_store(port: Port) -> bool:
    """Whether it lets anybody in as a rank; in a process of its own, because torch tells every try at length."""
    code = (
        "import datetime; from torch.distributed import TCPStore;"
        f"TCPStore({port.reached_at!r}, {port.number}, None, False, datetime.timedelta(seconds={_SILENT_S}),"
        " wait_for_workers=False).num_keys()"
    )
    call = [sys.executable, "-c", code]
    try:
        return subprocess.run(call, capture_output=True, check=False, timeout=_STORE_LIMIT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False
