"""Several streams as one: nothing lost, order kept, errors and deadlines end all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.serve.api.errors import ApiError
from orchestrator.serve.api.merge import merged

pytestmark = pytest.mark.anyio
Item = tuple[int, int]


class Watch:
    """Counts how many sources are open."""

    def __init__(self) -> None:
        self.open = self.most = self.begun = 0


async def counting(watch: Watch, source: int, length: int, *, pause_s: float = 0.0) -> AsyncGenerator[Item, None]:
    watch.open += 1
    watch.begun += 1
    watch.most = max(watch.most, watch.open)
    try:
        for number in range(length):
            await asyncio.sleep(pause_s)
            yield source, number
    finally:
        watch.open -= 1


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), at_once=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_item_comes_once_and_those_of_a_source_in_order(lengths: list[int], at_once: int) -> None:
    watch = Watch()

    async def collect() -> list[Item]:
        sources = [partial(counting, watch, source, length) for source, length in enumerate(lengths)]
        return [item async for item in merged(sources, at_once=at_once)]

    items = asyncio.run(collect())
    for source, length in enumerate(lengths):
        assert [number for own, number in items if own == source] == list(range(length))
    assert len(items) == sum(lengths)
    assert (watch.open, watch.begun) == (0, len(lengths))
    assert watch.most <= at_once


async def test_sources_are_worked_on_side_by_side() -> None:
    watch = Watch()
    sources = [partial(counting, watch, source, 3, pause_s=0.01) for source in range(4)]
    order = [source async for source, _ in merged(sources, at_once=4)]
    assert set(order[:4]) == {0, 1, 2, 3}


async def broken() -> AsyncGenerator[Item, None]:
    yield 0, 0
    raise KeyError("bug")


@pytest.mark.parametrize("others", [0, 3])
async def test_an_error_ends_all(others: int) -> None:
    watch = Watch()
    sources = [broken, *(partial(counting, watch, each, 1000, pause_s=0.001) for each in range(others))]
    with pytest.raises(KeyError):
        async for _ in merged(sources, at_once=4):
            pass
    assert watch.open == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_a_reader_that_leaves_closes_all(count: int) -> None:
    watch = Watch()
    sources = [partial(counting, watch, each, 1000, pause_s=0.001) for each in range(count)]
    async with aclosing(merged(sources, at_once=2)) as items:
        async for _ in items:
            break
    assert watch.open == 0
    assert watch.begun <= 2


@pytest.mark.parametrize("count", [1, 3])
async def test_a_deadline_ends_all_with_a_504(count: int) -> None:
    watch = Watch()
    sources = [partial(counting, watch, each, 1000, pause_s=0.01) for each in range(count)]
    got: list[Item] = []

    async def read() -> None:
        async for item in merged(sources, at_once=4, deadline_s=0.1):
            got.append(item)

    with pytest.raises(ApiError, match="longer than this service allows") as caught:
        await read()
    assert caught.value.status == 504
    assert got
    assert watch.open == 0
