"""The store: a folder is whole or not there, whatever is killed when; one writer at a time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import DataError, StoreError
from orchestrator.store import (
    MARKER,
    Store,
    commit,
    delete_committed,
    is_committed,
    lock,
    read_manifest,
    sweep,
    verify_folder,
    write_json,
    write_text,
    writing,
)

PUBLISH = """
import sys
from pathlib import Path
from orchestrator import store
final, text = Path(sys.argv[1]), sys.argv[2]
with store.writing(final) as tmp:
    (tmp / "inner").mkdir()
    (tmp / "a.txt").write_text(text)
    (tmp / "inner" / "b.txt").write_text(text * 2)
    store.commit(tmp, final, {"made": text})
"""
KILLED_AT_EACH_MOMENT = (
    """
import os, signal
def publish_until(moment):
    left = moment
    def dying(real):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("fsync", "unlink", "rmdir", "rename"):
        setattr(os, name, dying(getattr(os, name)))
    exec(BODY, {})
"""
    f"BODY = {PUBLISH!r}\n"
    """
import sys
for moment in range(100):
    sys.argv[1] = sys.argv[3] + "/at-%02d" % moment
    child = os.fork()
    if not child:
        publish_until(moment)
        os._exit(0)
    if not os.waitpid(child, 0)[1]:
        break
"""
)


def publish(final: Path, text: str) -> None:
    with writing(final) as tmp:
        (tmp / "inner").mkdir()
        (tmp / "a.txt").write_text(text)
        (tmp / "inner" / "b.txt").write_text(text * 2)
        commit(tmp, final, {"made": text})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publish(tmp_path / "made", "one")
    return tmp_path / "made"


def test_a_published_folder_verifies(folder: Path) -> None:
    manifest = verify_folder(folder)
    assert (manifest["made"], [f["path"] for f in manifest["files"]]) == ("one", ["a.txt", "inner/b.txt"])
    assert manifest["files"][1]["bytes"] == 6
    assert os.listdir(folder.parent) == ["made"]


def test_whoever_fails_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail_halfway() -> None:
        with writing(tmp_path / "made") as tmp:
            (tmp / "a.txt").write_text("half")
            assert not is_committed(tmp_path / "made")
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        fail_halfway()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("before", [None, "one"])
def test_a_kill_at_any_moment_leaves_a_whole_folder_or_none(tmp_path: Path, before: str | None) -> None:
    for moment in range(20 if before else 0):
        publish(tmp_path / f"at-{moment:02d}", before or "")
    subprocess.run([sys.executable, "-c", KILLED_AT_EACH_MOMENT, "final", "two", str(tmp_path)], check=True)
    moments = sorted(p for p in tmp_path.glob("at-*") if ".tmp-" not in p.name)
    whole = [is_committed(p) for p in moments]
    for final, complete in zip(moments, whole, strict=True):
        if complete:
            assert verify_folder(final)["made"] in (before, "two")
        else:
            with pytest.raises(StoreError, match="is not complete: it has no COMMITTED marker"):
                verify_folder(final)
    assert whole.count(False) >= 1
    assert len(list(tmp_path.glob("at-*.tmp-*"))) >= 5
    # The same command again: what the killed ones left is swept, and the folder is whole.
    for final in moments:
        sweep(tmp_path, final.name)
        publish(final, "three")
        assert verify_folder(final)["made"] == "three"


def test_leftovers_are_swept_by_name(folder: Path) -> None:
    for name in ("made.tmp-1", "made.tmp-2", "other.tmp-1"):
        (folder.parent / name / "inner").mkdir(parents=True)
    sweep(folder.parent, "made")
    assert sorted(os.listdir(folder.parent)) == ["made", "other.tmp-1"]
    sweep(folder.parent)
    assert os.listdir(folder.parent) == ["made"]


def test_a_folder_without_its_marker_is_replaced(folder: Path) -> None:
    (folder / MARKER).unlink()
    (folder / "stale.txt").write_text("stale")
    publish(folder, "two")
    assert verify_folder(folder)["made"] == "two"
    assert not (folder / "stale.txt").exists()


def test_deleting_takes_the_marker_too(folder: Path) -> None:
    delete_committed(folder)
    assert not folder.exists()


class TestVerify:
    def test_an_absent_file_is_named(self, folder: Path) -> None:
        (folder / "inner" / "b.txt").unlink()
        with pytest.raises(StoreError, match=r"inner/b\.txt is absent, the manifest says 6 bytes"):
            verify_folder(folder, deep=False)

    def test_a_truncated_file_is_named(self, folder: Path) -> None:
        (folder / "a.txt").write_text("on")
        with pytest.raises(StoreError, match=r"a\.txt has 2 bytes, the manifest says 3 bytes"):
            verify_folder(folder, deep=False)

    def test_an_altered_file_is_named_when_it_is_hashed(self, folder: Path) -> None:
        (folder / "a.txt").write_text("oNe")
        verify_folder(folder, deep=False)
        with pytest.raises(StoreError, match=r"a\.txt was altered: its SHA-256 is [0-9a-f]{16}\.\.\., the manifest"):
            verify_folder(folder)

    def test_the_callers_kind_of_error_is_raised(self, folder: Path) -> None:
        (folder / "a.txt").unlink()
        with pytest.raises(DataError, match=r"a\.txt is absent"):
            verify_folder(folder, DataError)

    @pytest.mark.parametrize("text", ["", "{", '{"files": [{"path": "a.txt", "by'])
    def test_a_torn_manifest_is_named(self, folder: Path, text: str) -> None:
        (folder / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match=r"manifest\.json is not readable"):
            verify_folder(folder)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"files": 3}', '{"files": [3]}', '{"files": [{"path": "a.txt"}]}'])
    def test_what_is_no_manifest_is_named(self, folder: Path, text: str) -> None:
        (folder / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match=r"manifest\.json is not a manifest"):
            read_manifest(folder)


class TestWriteText:
    def test_a_failed_write_leaves_the_old_text(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"a": 1})
        with pytest.raises(UnicodeEncodeError):
            write_text(tmp_path / "a.json", "new \ud800")
        assert (tmp_path / "a.json").read_text() == '{\n "a": 1\n}\n'
        assert os.listdir(tmp_path) == ["a.json"]


HOLDER = """
import sys
from pathlib import Path
from orchestrator.store import lock
with lock(Path(sys.argv[1]), holds="x"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock `held`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "held")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


class TestLock:
    def test_a_second_process_is_refused_and_told_who_holds_it(
        self, tmp_path: Path, holder: subprocess.Popen[str]
    ) -> None:
        said = f"the run x is being written by process {holder.pid} on {os.uname().nodename}"
        with pytest.raises(StoreError, match=said), lock(tmp_path / "held", holds="the run x"):
            pass

    def test_it_dies_with_its_owner(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        holder.kill()
        holder.wait()
        with lock(tmp_path / "held", holds="x"):
            assert str(os.getpid()) in (tmp_path / "held").read_text()

    def test_it_is_waited_for(self, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
        threading.Timer(0.3, holder.kill).start()
        began_at = time.monotonic()
        with lock(tmp_path / "held", holds="x", wait_s=20):
            assert 0.2 < time.monotonic() - began_at < 20

    def test_shared_holders_get_along_and_keep_a_writer_out(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "lock"
        with contextlib.ExitStack() as held:
            held.enter_context(lock(path, holds="x", shared=True))
            held.enter_context(lock(path, holds="x", shared=True))
            with pytest.raises(StoreError, match="x is being written by another process"):
                held.enter_context(lock(path, holds="x"))
        with contextlib.ExitStack() as held:
            held.enter_context(lock(path, holds="x"))
            with pytest.raises(StoreError, match="x is being written by process"):
                held.enter_context(lock(path, holds="x", shared=True))


class TestStore:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        for name in ("tiny-00aa", "tiny-00ab", "other-11"):
            (tmp_path / "runs" / name).mkdir(parents=True)
            (tmp_path / "runs" / name / "job.yaml").touch()
        (tmp_path / "runs" / "no-run").mkdir()
        return Store(tmp_path)

    @pytest.mark.parametrize("asked", ["{root}/runs/tiny-00aa", "runs/tiny-00aa", "tiny-00aa"])
    def test_a_run_is_found_by_path_or_name(self, store: Store, asked: str) -> None:
        assert store.find_run(asked.format(root=store.root)) == store.runs / "tiny-00aa"

    def test_a_run_is_found_by_the_beginning_of_one_name(self, store: Store) -> None:
        assert store.find_run("oth") == store.runs / "other-11"

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ("tiny", "there is no run 'tiny' in .*; 2 begin so: tiny-00aa, tiny-00ab"),
            ("none", "there is no run 'none' in .*; the store has: other-11, tiny-00aa, tiny-00ab"),
            ("no-run", "the store has: other-11"),
        ],
    )
    def test_what_is_no_run_is_told_what_there_is(self, store: Store, asked: str, said: str) -> None:
        with pytest.raises(StoreError, match=said):
            store.find_run(asked)

    def test_of_many_runs_some_are_named(self, store: Store) -> None:
        for number in range(40):
            (store.runs / f"many-{number:02}").mkdir()
            (store.runs / f"many-{number:02}" / "job.yaml").touch()
        with pytest.raises(StoreError, match=r"40 begin so: many-00, .*, many-11 and 28 more"):
            store.find_run("many")

    def test_an_empty_store_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="the store has: none"):
            Store(tmp_path).find_run("x")

    def test_a_dataset_is_shared_by_jobs_of_other_names(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        assert store.dataset("mine", "0123") == tmp_path / "datasets" / "mine-0123"
        publish(tmp_path / "datasets" / "theirs-0123", "one")
        assert store.dataset("mine", "0123") == tmp_path / "datasets" / "theirs-0123"
        (tmp_path / "datasets" / "theirs-0123" / MARKER).unlink()
        assert store.dataset("mine", "0123") == tmp_path / "datasets" / "mine-0123"

    def test_paths_are_told_relative_to_it(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store")
        assert store.relative(tmp_path / "store" / "runs" / "a") == "runs/a"
        assert store.relative(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")
