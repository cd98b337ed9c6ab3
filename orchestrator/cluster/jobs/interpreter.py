"""Which Python of the head runs what is submitted."""

from __future__ import annotations

import shlex
import sys

_HAS_US = 'import importlib.util as u, sys; sys.exit(not (u.find_spec("ray") and u.find_spec("orchestrator")))'


def on_the_head(arguments: str) -> str:
    """The shell's line for an interpreter with these arguments.

    It is the one that we run in where the head has it too, else the one that is first on the path of the head's Ray.
    """
    own = shlex.quote(sys.executable)
    choice = f'python={own}; "$python" -c {shlex.quote(_HAS_US)} 2>/dev/null || python=python'
    return f'{choice}; exec "$python" {arguments}'
