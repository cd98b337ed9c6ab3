"""What a submitted job begins with, on the cluster: refuse what cannot work there, start the driver, say how it died.

It stays beside the driver, which cannot tell of its own end by a signal, and takes nothing but a little memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.cluster.jobs.requirements import this_platform
from orchestrator.errors import JobError, SlipwayError
from orchestrator.source_code import code_commit
from orchestrator.track.state_lines import VARIABLE

_JOB_FILE = "job.yaml"
_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray puts the metadata of a job for its driver."""
_COUNTERS = ("/sys/fs/cgroup/memory.events", "/proc/vmstat")


def main(words: Sequence[str]) -> int:
    """Run the job; the exit code is the driver's, 128 + N where signal N has ended it."""
    asked = _parser().parse_args(words)
    try:
        refuse(asked, os.environ)
        job = _job_file(os.environ)
    except SlipwayError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    # A stop tells every process of the job, the driver too: it is what saves and ends, and we wait for it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(job), "--address", "auto"]
    command += ["--store", asked.store, "--until", asked.until, "--json"]
    killed_before = _killed_for_memory()
    driver = subprocess.Popen(command, env={**os.environ, VARIABLE: "1"})
    code = driver.wait()
    if code >= 0:
        return code
    sys.stderr.write(f"error: {last_words(-code, out_of_memory=_killed_for_memory() > killed_before)}\n")
    return 128 - code


def refuse(asked: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """What would fail later, or what would run other code than was meant.

    Raises:
        JobError: another version or platform, or a variable that is not set.
    """
    here = _installed()
    if asked.version and here != asked.version:
        raise JobError(
            f"the job was submitted by slipway {asked.version}, and this cluster has {here}",
            fix=f"install {here} where you submit, {asked.version} on the cluster, or bring your code: submit --dev",
        )
    commit = code_commit() or "unknown"
    if asked.commit and "unknown" not in (commit, asked.commit) and commit != asked.commit:
        sys.stderr.write(
            f"warning: the job was submitted from commit {asked.commit[:12]}, this cluster runs {commit[:12]}; "
            "submit --dev brings your own\n"
        )
    if asked.platform and asked.platform != this_platform():
        raise JobError(
            f"the job's packages are for Python {asked.platform}, and this cluster has {this_platform()}",
            fix="submit from a machine of the same kind, or install them on the cluster",
        )
    missing = [name for name in asked.need if not environ.get(name)]
    if missing:
        raise JobError(
            f"the job needs {', '.join(missing)}, which this cluster's environment does not have",
            fix="set it where Ray is started on each node, from a file of mode 0600; no value travels with a job",
        )


def last_words(signum: int, *, out_of_memory: bool) -> str:
    """Of a driver that a signal has ended."""
    name = signal.Signals(signum).name if signum in set(signal.Signals) else str(signum)
    if out_of_memory:
        return (
            f"the driver was killed ({name}) while the kernel ended processes of this machine for want of memory\n"
            "  fix: give the head more memory, or put less on it; `slipway jobs retry` goes on from the last checkpoint"
        )
    return f"the driver was killed from outside ({name})\n  fix: `slipway jobs retry` goes on from the last checkpoint"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orchestrator.cluster.jobs.drive")
    for name in ("--store", "--until"):
        parser.add_argument(name, required=True)
    for name in ("--version", "--commit", "--platform"):
        parser.add_argument(name)
    parser.add_argument("--need", action="append", default=[])
    return parser


def _installed() -> str:
    try:
        return version("slipway")
    except PackageNotFoundError:
        return "none"


def _job_file(environ: Mapping[str, str]) -> Path:
    """In the working folder that came along; in a container there is none, and Ray's metadata has the job."""
    if Path(_JOB_FILE).is_file():
        return Path(_JOB_FILE)
    path = Path(tempfile.mkdtemp(prefix="slipway-job-")) / _JOB_FILE
    path.write_text(json.loads(environ[_CONFIG])["metadata"]["job"], encoding="utf-8")
    return path


def _killed_for_memory() -> int:
    """How many processes the kernel has ended so far, of this container and of the machine."""
    found = 0
    for path in map(Path, _COUNTERS):
        if path.is_file():
            words = (line.split() for line in path.read_text(encoding="ascii").splitlines())
            found += sum(int(count) for name, count in words if name == "oom_kill")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
