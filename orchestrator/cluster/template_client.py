"""What Ray starts in the place of Python: has a template make the worker; where none does, becomes Python itself.

    python -I -S template_client.py SCRIPT ARGUMENT...

Of the standard library alone, and little of it: each worker's start waits for this.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

SOCKET = "SLIPWAY_TEMPLATE"
"""Variable: the template's socket."""
TAKEN = b"y"
_LIMIT_S = 40.0
"""For a template that is still importing; Ray gives a worker 60 s to report."""


def asked(path: str, script: list[str]) -> bool:
    """Have the template at a socket run a script in a process of its own; False: it does not."""
    wanted = {
        "script": script,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }
    body = json.dumps(wanted).encode()
    with socket.socket(socket.AF_UNIX) as template:
        template.settimeout(_LIMIT_S)
        try:
            template.connect(path)
            socket.send_fds(template, [len(body).to_bytes(4, "big")], [0, 1, 2])
            template.sendall(body)
            return template.recv(1) == TAKEN
        except OSError:
            return False


if __name__ == "__main__":
    found = os.environ.pop(SOCKET, None)
    if found is None or not asked(found, sys.argv[1:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
