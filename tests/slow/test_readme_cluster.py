"""README's section on clusters, command by command, as it is written: only ports, folder and names are others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from harness import environment, free_port

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def commands() -> list[str]:
    """Of the section's blocks, without comments."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### 17. Run on a cluster\n")[2]
    blocks = re.findall(r"```bash\n(.*?)```", section.partition("\n### ")[0], flags=re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@dataclass
class Shell:
    """One machine's user, who types a command after the other."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {p: free_port() for p in ("6379", "8265", "52366", "8000")})
    exported: dict[str, str] = field(default_factory=dict)
    run: str = ""

    def adapt(self, line: str) -> str:
        for written, port in self.ports.items():
            line = re.sub(rf"\b{written}\b", str(port), line)
        line = line.replace("/shared/slipway", str(self.folder / "store")).replace("RUN ", f"{self.run} ")
        if line.startswith("slipway submit"):
            line += f" --set serve.port={self.ports['8000']}"
        if line.startswith("ray start"):  # other tests have a Ray in the usual places
            own = "agent" if "--address" in line else "head"
            line += f" --temp-dir={self.folder}/{own} --node-ip-address=127.0.0.1 --object-store-memory=100000000"
            if own == "head":
                line += f" --dashboard-port={self.ports['8265']} --dashboard-agent-listen-port={free_port()}"
        return line

    def start(self, line: str) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}" if line.startswith("slipway") else line],
            cwd=ROOT,
            env=environment(**self.exported, PATH=path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, line: str) -> str:
        with self.start(self.adapt(line)) as process:
            said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, f"{line}\n{said}"
        return said

    def leave_once_it_trains(self, line: str) -> None:
        """Follow a log, and Ctrl-C when a step is there."""
        with self.start(self.adapt(line)) as process:
            assert process.stdout is not None
            for said in process.stdout:
                if re.search(r"step \d+/\d+", said):
                    break
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 0

    def end(self) -> None:
        """`ray stop`, for this test's Ray alone."""
        for process in psutil.process_iter(["cmdline", "environ"]):
            if any(str(self.folder) in word for word in process.info["cmdline"] or ()):
                process.kill()


@pytest.fixture
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="slipway-readme-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        shell = Shell(Path(folder))
        yield shell
        shell.end()


def test_every_command_of_the_section_works(shell: Shell) -> None:
    said: dict[str, str] = {}
    followed = 0
    for line in commands():
        if line.startswith("export "):
            shell.exported |= dict(pair.split("=", 1) for pair in line.split()[1:])
        elif line == "ray stop":
            shell.end()
        elif "jobs logs" in line and not followed:
            followed += 1
            shell.leave_once_it_trains(line)
        else:
            said[" ".join(line.split()[:3])] = shell.type(line)
            shell.run = next((path.name for path in shell.folder.glob("store/runs/quickstart-*")), "")
    assert "saved up to step" in said["slipway jobs stop"]
    assert "continuing" in said["slipway jobs logs"]
    assert "quickstart" in said["slipway jobs list"]
    assert '"text"' in said["curl http://127.0.0.1:8000/v1/completions -H"]
    assert shell.run in said["slipway lineage RUN"]
    time.sleep(1.0)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(shell.folder) in " ".join(p.info["cmdline"] or ())]
