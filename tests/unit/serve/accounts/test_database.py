"""Several processes at one place: limits stay exact, and a killed one leaves nothing open for ever."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from orchestrator.serve.accounts import keys, ledger
from orchestrator.serve.accounts.database import Database
from orchestrator.serve.accounts.keys import NewKey
from orchestrator.serve.accounts.ledger import ABANDONED_S
from orchestrator.serve.accounts.usage import used

_PREAMBLE = """
    import sys, time, pathlib
    from orchestrator.serve.accounts import ledger
    from orchestrator.serve.accounts.database import Database
    from orchestrator.serve.accounts.ledger import Admitted, Asked

    url, key_id, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    database = Database(url)
    asked = Asked(key_id=key_id, scope="generate", model="m", version="1", prompt_tokens=3, max_tokens=4)

    def admit():
        with database.transaction() as session:
            return ledger.admit(session, asked, {})
"""
_BURST = """
    with database.reading():
        pass
    (folder / sys.argv[4]).touch()
    while not (folder / "go").exists():
        time.sleep(0.001)
    accepted = 0
    for _ in range(60):
        outcome = admit()
        if isinstance(outcome, Admitted):
            accepted += 1
            with database.transaction() as session:
                ledger.settle(session, outcome, {}, prompt_tokens=3, completion_tokens=4, failed=False)
    print(accepted)
"""
_HANG = """
    assert isinstance(admit(), Admitted)
    print("admitted", flush=True)
    time.sleep(600)
"""


def start(code: str, url: str, key_id: str, folder: Path, name: str = "one") -> subprocess.Popen[str]:
    program = textwrap.dedent(_PREAMBLE) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", program, url, key_id, folder, name], stdout=-1, text=True)


def make_key(url: str, **limits: Any) -> str:
    with Database(url).transaction() as session:
        return keys.create(session, NewKey(name="ana", **limits))[0].id


@pytest.mark.parametrize(("limits", "fit"), [({"rpm": 100}, 100), ({"tpm": 500}, 500 // 7)])
def test_of_a_burst_from_all_sides_exactly_the_limit_is_let_in(
    url: str, tmp_path: Path, limits: dict[str, int], fit: int
) -> None:
    key_id = make_key(url, **limits)
    names = ["a", "b", "c"]
    processes = [start(_BURST, url, key_id, tmp_path, name) for name in names]
    while not all((tmp_path / name).exists() for name in names):
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    accepted = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(accepted) == fit
    with Database(url).reading() as session:
        (row,) = used(session)
        assert (row.requests, row.prompt_tokens, row.completion_tokens) == (fit, 3 * fit, 4 * fit)


def test_a_killed_process_is_counted_for_what_it_was_asked(url: str, tmp_path: Path) -> None:
    key_id = make_key(url, rpm=1)
    process = start(_HANG, url, key_id, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "admitted\n"
    process.kill()
    process.wait()
    with Database(url).reading() as session:
        assert used(session) == []
        later = session.now() + ABANDONED_S
    database = Database(url, clock=lambda: later)
    assert ledger.close_abandoned(database, {}) == 1
    with database.reading() as session:
        (row,) = used(session)
        assert (row.requests, row.prompt_tokens, row.completion_tokens) == (1, 3, 0)
