"""How a process of a group ends."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(143)", 143, ""),
        ("sys.exit('what went wrong')", 1, "what went wrong\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_a_process_ends_with_the_code_of_its_main(body: str, code: int, said: str) -> None:
    program = f"""
import atexit, sys
from orchestrator.train.group import end_process_after
class Late:
    def __del__(self): print("taken down")
late = Late()
atexit.register(print, "at exit")
def main():
    print("in main")
    {body}
end_process_after(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == "in main\nat exit\n"
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)
