"""`slipway doctor`: what this machine has, a line each; what is wrong comes with its fix."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from orchestrator.cluster.async_io import missing
from orchestrator.cluster.token import is_exposed, token_path
from orchestrator.cluster.view import local_view

WANTED_DISK_BYTES = 5 << 30
WANTED_SHM_BYTES = 1 << 30
_PACKAGES = ("torch", "ray", "deepspeed", "wandb", "pyarrow", "tokenizers", "safetensors", "openai")
_PORTS = (8000,)
_RAY_LIMIT_S = 60.0
_ENGINE = "orchestrator.train.engine.deepspeed_engine"


@dataclass(frozen=True)
class Check:
    """One line."""

    name: str
    ok: bool
    found: str
    fix: str | None = None


def examine(store: Path) -> list[Check]:
    """All checks; each looks at the real thing, Ray included, which is started and ended."""
    checks: list[Callable[[Path], Iterator[Check]]] = [
        _python,
        _packages,
        _compiler,
        _deepspeed,
        _machine,
        _disk,
        _ports,
        _token,
        _ray,
        _wandb,
    ]
    return [check for examine_one in checks for check in examine_one(store)]


def _python(_store: Path) -> Iterator[Check]:
    ok = sys.version_info >= (3, 10)
    yield Check("python", ok, f"{platform.python_version()} at {sys.executable}", "use Python 3.10 or later")


def _packages(_store: Path) -> Iterator[Check]:
    for name in _PACKAGES:
        asked = next((r.partition(";")[0] for r in requires("slipway") or [] if r.startswith(name)), name)
        try:
            yield Check(
                name, _satisfies(asked, version(name)), f"{version(name)} (asked: {asked.strip()})", "make setup"
            )
        except PackageNotFoundError:
            yield Check(name, False, "not installed", "make setup")


def _satisfies(requirement: str, found: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(found, prereleases=True)


def _compiler(_store: Path) -> Iterator[Check]:
    found = shutil.which("g++") or shutil.which("c++")
    yield Check("compiler", True, found or "none; only needed where DeepSpeed compiles an op (offload)", "install g++")
    lacks = missing()
    offload = f"cannot be compiled: this machine lacks {lacks}" if lacks else "a job that asks for it can compile it"
    yield Check("nvme offload", True, offload)


def _deepspeed(_store: Path) -> Iterator[Check]:
    """Import it as a worker does, in a process of its own: it prints, and takes a second."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {_ENGINE} import import_deepspeed; import_deepspeed()"],
        capture_output=True,
        text=True,
        timeout=_RAY_LIMIT_S,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = (done.stderr.strip().splitlines() or [""])[-1]
    found = "imports; its shared-memory op is switched off (training goes through gloo or NCCL): nothing to build"
    yield Check("deepspeed op", done.returncode == 0, found if done.returncode == 0 else last, "make setup")


def _machine(_store: Path) -> Iterator[Check]:
    yield Check("resources", True, local_view().describe())
    shm = shutil.disk_usage("/dev/shm")
    yield Check(
        "/dev/shm",
        shm.free >= WANTED_SHM_BYTES,
        f"{shm.free / 1e9:.1f} GB free",
        "free /dev/shm or mount a larger one",
    )


def _disk(store: Path) -> Iterator[Check]:
    place = next(p for p in (store, *store.parents) if p.exists())
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    found = f"{free / 1e9:.1f} GB free for {store}" + ("" if writable else ", not writable")
    yield Check("disk", writable and free >= WANTED_DISK_BYTES, found, "free some space, or give a larger --store")


def _ports(_store: Path) -> Iterator[Check]:
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                yield Check("port", True, f"{port} is free on 127.0.0.1")
            except OSError:
                yield Check("port", False, f"{port} is in use", "`slipway serve --status`, or set serve.port or --port")


def _token(_store: Path) -> Iterator[Check]:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    yield Check("token mode", mode == "token", f"RAY_AUTH_MODE={mode}", "unset RAY_AUTH_MODE, or set it to token")
    path = token_path()
    if not path.exists():
        yield Check("token", True, f"none yet; {path} is made with mode 0600 when Ray first starts")
        return
    bits = oct(path.stat().st_mode & 0o777)
    yield Check("token", not is_exposed(path), f"{path} has mode {bits}", f"chmod 600 {path}")


def _ray(_store: Path) -> Iterator[Check]:
    """Start a Ray as `run` does, and ask it for a task."""
    code = (
        "from orchestrator.cluster.connect import connected\n"
        "with connected() as view:\n"
        "    import ray\n"
        "    print(ray.get(ray.remote(lambda: 'runs tasks').remote()), 'on', view.describe())\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_RAY_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield Check(
            "ray", False, f"does not start within {_RAY_LIMIT_S:g} s", "look for other Ray processes: ray status"
        )
        return
    ok = done.returncode == 0
    lines = (done.stdout if ok else done.stderr).strip().splitlines()
    yield Check(
        "ray starts",
        ok,
        lines[-1] if lines else "",
        "is /tmp writable, and are there other Ray processes? see ~/.ray and /tmp/ray",
    )


def _wandb(_store: Path) -> Iterator[Check]:
    mode = os.environ.get("WANDB_MODE")
    netrc = Path.home() / ".netrc"
    key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "api.wandb.ai" in netrc.read_text())
    what = (
        f"WANDB_MODE={mode}" if mode else "online, a key is there" if key else "offline: no key; `wandb login` sets one"
    )
    yield Check("w&b", True, what)
