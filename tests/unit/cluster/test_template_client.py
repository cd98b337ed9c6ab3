from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from orchestrator.cluster.template_client import TAKEN, asked


@pytest.mark.parametrize(("answer", "taken"), [(TAKEN, True), (b"", False)])
def test_a_template_that_closes_without_an_answer_has_not_taken_it(tmp_path: Path, answer: bytes, taken: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def play() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(answer)

        thread = threading.Thread(target=play)
        thread.start()
        assert asked(str(tmp_path / "s"), ["script.py"]) is taken
        thread.join()


def test_nobody_there(tmp_path: Path) -> None:
    assert not asked(str(tmp_path / "s"), ["script.py"])
