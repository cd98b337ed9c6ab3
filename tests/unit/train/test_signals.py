"""A worker's signals, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

WORKER = """
import signal, sys, time
from orchestrator.train.signals import exit_code, listen, told_to_end
listen(signal.SIGINT, signal.SIGTERM)
assert exit_code() == 0
print("listens", flush=True)
while not told_to_end():
    time.sleep(0.01)
print("told", flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(exit_code())
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("busy_s", [0, 60])
def test_one_signal_lets_it_save_and_a_second_ends_it(signum: signal.Signals, code: int, busy_s: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER, str(busy_s)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        began_at = time.monotonic()
        worker.send_signal(signum)
        assert worker.stdout.readline() == "told\n"
        if busy_s:
            worker.send_signal(signum)
        assert worker.wait(20) == code
        assert time.monotonic() - began_at < 20
