"""The cache of remote shards: whole or absent, within its limit, and never from under whoever uses it."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.data.load.cache import ShardCache
from orchestrator.errors import DataError


class Remote:
    """Shards of 100 bytes by name, and what was fetched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.fetched: list[str] = []
        folder.mkdir()

    def add(self, name: str, content: bytes | None = None) -> tuple[str, int, str]:
        content = content or (name.encode() * 100)[:100]
        (self._folder / name).write_bytes(content)
        return name, len(content), hashlib.sha256(content).hexdigest()

    def fetch(self, uri: str, path: Path) -> None:
        self.fetched.append(uri)
        path.write_bytes((self._folder / uri).read_bytes())


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path / "remote")


def names(cache: ShardCache, shards: dict[str, tuple[str, int, str]], folder: Path) -> list[str]:
    return [name for name, (_, _, sha256) in shards.items() if (folder / f"{sha256}.shard").exists()]


def test_a_shard_is_fetched_once_and_read_from_the_disk_after_that(tmp_path: Path, remote: Remote) -> None:
    cache = ShardCache(tmp_path / "cache", 1000, remote.fetch)
    shard = remote.add("a")
    for _ in range(3):
        with cache.open(*shard) as path:
            assert path.read_bytes() == b"a" * 100
    assert remote.fetched == ["a"]
    again = ShardCache(tmp_path / "cache", 1000, remote.fetch)
    with again.open(*shard):
        assert remote.fetched == ["a"]
    assert again.used_bytes() == 100


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, remote: Remote) -> None:
    cache = ShardCache(tmp_path / "cache", 300, remote.fetch)
    shards = {name: remote.add(name) for name in "abcd"}
    for name in "abcabad":
        time.sleep(0.002)
        with cache.open(*shards[name]):
            assert cache.used_bytes() <= 300
    assert names(cache, shards, tmp_path / "cache") == ["a", "b", "d"]


def test_what_is_in_use_stays(tmp_path: Path, remote: Remote) -> None:
    cache = ShardCache(tmp_path / "cache", 200, remote.fetch)
    shards = {name: remote.add(name) for name in "abc"}
    with cache.open(*shards["a"]) as a:
        with cache.open(*shards["b"]):
            pass
        with cache.open(*shards["c"]):
            assert names(cache, shards, tmp_path / "cache") == ["a", "c"]
            assert a.read_bytes() == b"a" * 100
            with (
                pytest.raises(DataError, match="b needs 100 bytes, but the cache of 200 bytes has 0") as caught,
                cache.open(*shards["b"]),
            ):
                pass
            assert "by 100 or more" in str(caught.value.fix)


def test_a_shard_larger_than_the_cache_is_refused(tmp_path: Path, remote: Remote) -> None:
    cache = ShardCache(tmp_path / "cache", 99, remote.fetch)
    with pytest.raises(DataError, match="a needs 100 bytes"), cache.open(*remote.add("a")):
        pass
    assert cache.used_bytes() == 0


@pytest.mark.parametrize("content", [b"a" * 99 + b"b", b"a" * 99, b""])
def test_a_flipped_byte_is_an_error_that_names_the_shard(tmp_path: Path, remote: Remote, content: bytes) -> None:
    cache = ShardCache(tmp_path / "cache", 1000, remote.fetch)
    shard = remote.add("a")
    (tmp_path / "remote" / "a").write_bytes(content)
    with pytest.raises(DataError, match=f"a is not the shard of its manifest: 100 bytes .* {len(content)} bytes"):
        cache.open(*shard).__enter__()
    assert cache.used_bytes() == 0
    remote.add("a")
    with cache.open(*shard) as path:
        assert path.read_bytes() == b"a" * 100


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path, remote: Remote) -> None:
    def fetch(uri: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError("the network is down")

    cache = ShardCache(tmp_path / "cache", 1000, fetch)
    with pytest.raises(ConnectionError, match="the network is down"):
        cache.open(*remote.add("a")).__enter__()
    assert cache.used_bytes() == 0


def test_what_a_killed_fetch_left_makes_room(tmp_path: Path, remote: Remote) -> None:
    cache = ShardCache(tmp_path / "cache", 150, remote.fetch)
    (tmp_path / "cache" / f"{'0' * 64}.100.part").write_bytes(b"half")
    assert cache.used_bytes() == 100
    with cache.open(*remote.add("a")):
        assert cache.used_bytes() == 100


def test_a_file_of_another_size_is_fetched_again(tmp_path: Path, remote: Remote) -> None:
    cache = ShardCache(tmp_path / "cache", 1000, remote.fetch)
    shard = remote.add("a")
    with cache.open(*shard) as path:
        path.write_bytes(b"short")
    with cache.open(*shard) as path:
        assert path.read_bytes() == b"a" * 100


def test_threads_that_ask_at_once_fetch_once(tmp_path: Path, remote: Remote) -> None:
    shard = remote.add("a")

    def slowly(uri: str, path: Path) -> None:
        time.sleep(0.05)
        remote.fetch(uri, path)

    cache = ShardCache(tmp_path / "cache", 1000, slowly)
    found: list[bytes] = []

    def use() -> None:
        with cache.open(*shard) as path:
            found.append(path.read_bytes())

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"a" * 100] * 6
    assert remote.fetched == ["a"]


def test_workers_that_ask_at_once_hold_it_at_the_same_time(tmp_path: Path, remote: Remote) -> None:
    """As training workers do: each keeps its shards until all have finished."""
    shard = remote.add("a")
    asked, held = threading.Barrier(4), threading.Barrier(4)

    def fetch(uri: str, path: Path) -> None:
        time.sleep(0.2)  # the others have asked by then
        remote.fetch(uri, path)

    def work() -> bytes:
        asked.wait(10)
        with ShardCache(tmp_path / "cache", 1000, fetch).open(*shard) as path:
            held.wait(10)
            return path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert [f.result() for f in [pool.submit(work) for _ in range(4)]] == [b"a" * 100] * 4
    assert remote.fetched == ["a"]


def _churn(folder: Path, source: Path, shards: list[tuple[str, int, str]], seed: int) -> None:
    cache = ShardCache(folder, 350, lambda uri, path: path.write_bytes((source / uri).read_bytes()))
    for i in range(60):
        name, *rest = shards[(i * (seed + 1) + seed) % len(shards)]
        with cache.open(name, *rest) as path:
            assert path.read_bytes() == (name.encode() * 100)[:100]
            assert cache.used_bytes() <= 350


def test_processes_share_it_within_its_limit(tmp_path: Path, remote: Remote) -> None:
    shards = [remote.add(name) for name in "abcdef"]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_churn, args=(tmp_path / "cache", tmp_path / "remote", shards, seed))
        for seed in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not list((tmp_path / "cache").glob("*.part"))
