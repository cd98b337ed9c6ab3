"""A process that stands ready to export runs: what takes seconds to import it has imported.

    python -m orchestrator.export.ready

reads the folder of a run as JSON, a line each, and answers with a line: {"export": FOLDER}, or {"error": {...}} as the
command line has it. It ends with its input. Whoever asks lets go of nothing: what was read is this process's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import torch

import orchestrator.export.write  # noqa: F401 - the stage would import it for the first run
from orchestrator.errors import SlipwayError
from orchestrator.export.stage import export_run


def answer(asked: Iterable[str], answers: TextIO) -> None:
    """Export run after run, as this module says."""
    for line in asked:
        with contextlib.ExitStack() as after:
            try:
                document = {"export": str(export_run(Path(json.loads(line)), at_end=after.callback).path)}
            except SlipwayError as error:
                document = error.as_json()
            answers.write(json.dumps(document) + "\n")
            answers.flush()


def main() -> None:
    """Answer on what is standard output now; what anything prints goes to standard error from here on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, which is for the service
    # Others train and serve here: threads that wait for each other's turn on a core take 50 times as long.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        answer(sys.stdin, answers)


if __name__ == "__main__":
    main()
