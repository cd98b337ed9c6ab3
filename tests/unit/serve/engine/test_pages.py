"""Who has which page, and which are found again."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.serve.engine.pages import Holding, PagePool

PAGE = 4


def pool(pages: int = 8) -> PagePool:
    return PagePool(pages, PAGE)


def held(pages: PagePool, tokens: list[int], room: int) -> Holding:
    holding = pages.hold(tokens, room=room)
    assert holding is not None
    return holding


def test_a_prompt_that_begins_alike_shares_its_whole_pages() -> None:
    pages = pool()
    first = held(pages, [1, 2, 3, 4, 5, 6, 7, 8, 9], 12)
    pages.learn(first, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = held(pages, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11], 12)
    assert second.pages[:2] == first.pages[:2]
    assert second.found_tokens == 8
    assert second.pages[2] != first.pages[2]
    assert pages.held == 4


def test_the_last_token_is_always_left_to_be_read() -> None:
    pages = pool()
    pages.learn(held(pages, [1, 2, 3, 4, 5], 5), [1, 2, 3, 4])
    assert held(pages, [1, 2, 3, 4], 8).found_tokens == 0
    assert held(pages, [1, 2, 3, 4, 9], 8).found_tokens == 4


def test_a_page_counts_only_behind_the_same_beginning() -> None:
    pages = pool()
    pages.learn(held(pages, list(range(8)), 8), list(range(8)))
    assert held(pages, [9, 9, 9, 9, 4, 5, 6, 7, 8], 12).found_tokens == 0


def test_what_nobody_has_is_found_until_its_room_is_needed_the_end_first() -> None:
    pages = pool(3)
    first = held(pages, list(range(12)), 12)
    pages.learn(first, list(range(12)))
    pages.release(first)
    assert pages.held == 0
    pages.release(held(pages, [50], 4))  # takes the page of tokens 8 to 11
    assert held(pages, list(range(12)), 12).found_tokens == 8


def test_there_is_none_while_there_is_no_room() -> None:
    pages = pool(3)
    first = held(pages, [1], 12)
    assert pages.hold([2], room=4) is None
    pages.release(first)
    assert pages.hold([2], room=4) is not None


def test_pages_that_are_found_are_no_room_for_the_rest() -> None:
    pages = pool(2)
    first = held(pages, [1, 2, 3, 4, 5], 8)
    pages.learn(first, [1, 2, 3, 4, 5])
    pages.release(first)
    assert pages.hold([1, 2, 3, 4, 5], room=12) is None
    assert held(pages, [1, 2, 3, 4, 5], 8).found_tokens == 4


def test_what_is_spoilt_is_not_found_again() -> None:
    pages = pool()
    first = held(pages, [1, 2, 3, 4, 5], 8)
    pages.learn(first, [1, 2, 3, 4])
    second = held(pages, [1, 2, 3, 4, 6], 8)
    assert pages.release(first, forget=True) == [first.pages[1]]
    assert held(pages, [1, 2, 3, 4, 5], 8).found_tokens == 0
    assert pages.release(second) == second.pages[::-1]


def test_after_all_is_forgotten_those_under_way_teach_nothing() -> None:
    pages = pool()
    first = held(pages, [1, 2, 3, 4, 5], 8)
    pages.forget_all()
    pages.learn(first, [1, 2, 3, 4, 5])
    assert held(pages, [1, 2, 3, 4, 5], 8).found_tokens == 0


class Pool(RuleBasedStateMachine):
    """Whatever is done, no page is lost, and none is written by one while another reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = pool(6)
        self.holdings: list[tuple[Holding, list[int]]] = []
        self.content: dict[int, tuple[int, ...]] = {}

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14), more=st.integers(0, 6))
    def begin(self, tokens: list[int], more: int) -> None:
        holding = self.pages.hold(tokens, room=len(tokens) + more)
        if holding is None:
            return
        for index in range(holding.found_tokens // PAGE):
            assert self.content[holding.pages[index]] == tuple(tokens[: (index + 1) * PAGE])
        others = {page for other, _ in self.holdings for page in other.pages}
        assert not others & set(holding.pages[holding.found_tokens // PAGE :])
        for index in range(holding.found_tokens // PAGE, len(tokens) // PAGE):
            self.content[holding.pages[index]] = tuple(tokens[: (index + 1) * PAGE])
        self.holdings.append((holding, tokens))

    @precondition(lambda self: self.holdings)
    @rule(data=st.data())
    def learn(self, data: st.DataObject) -> None:
        self.pages.learn(*data.draw(st.sampled_from(self.holdings)))

    @precondition(lambda self: self.holdings)
    @rule(data=st.data(), forget=st.booleans())
    def end(self, data: st.DataObject, forget: bool) -> None:
        one = data.draw(st.sampled_from(self.holdings))
        self.holdings.remove(one)
        self.pages.release(one[0], forget=forget)

    @rule()
    def forget(self) -> None:
        self.pages.forget_all()

    @invariant()
    def no_page_is_lost(self) -> None:
        assert self.pages.held == len({page for holding, _ in self.holdings for page in holding.pages})
        if not self.holdings:
            everything = self.pages.hold([7], room=6 * PAGE)
            assert everything is not None
            self.pages.release(everything)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
