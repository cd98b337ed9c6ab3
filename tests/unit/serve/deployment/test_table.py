"""Which version answers: shares add up to one whatever comes and goes."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serve.deployment import table
from orchestrator.serve.deployment.table import Entry, Facts, Table

FACTS = Facts(kind="decoder", fingerprint="fp_1", created=1, eos_id=0, vocab_size=9, context=8, max_tokens=8)


def entry(model: str, version: str, share: float = 1.0) -> Entry:
    return Entry(model=model, version=version, export="/e", share=share, app=f"{model}-{version}", facts=FACTS)


def test_an_entry_survives_json() -> None:
    one = entry("m", "v3", 0.25)
    for facts in (FACTS, replace(FACTS, kind="encoder", labels=("bad", "good"))):
        again = Entry.from_json(json.loads(json.dumps(replace(one, facts=facts).as_json())))
        assert again == replace(one, facts=facts)


def test_a_canary_takes_its_share_and_gives_it_back() -> None:
    before: Table = (entry("m", "v1"), entry("other", "v1"))
    with_canary = table.beside(before, entry("m", "v2", 0.05))
    assert [(e.app, round(e.share, 6)) for e in with_canary] == [("m-v1", 0.95), ("other-v1", 1.0), ("m-v2", 0.05)]
    assert table.without(with_canary, entry("m", "v2")) == before
    promoted = table.alone(with_canary, entry("m", "v2", 0.05))
    assert [(e.app, e.share) for e in promoted] == [("other-v1", 1.0), ("m-v2", 1.0)]
    assert table.current(with_canary, "m") == replace(before[0], share=0.95)
    assert table.current(before, "absent") is None


@given(st.lists(st.tuples(st.sampled_from(["beside", "alone", "without"]), st.floats(0.01, 1.0)), max_size=12))
def test_shares_of_a_model_always_add_up_to_one(steps: list[tuple[str, float]]) -> None:
    standing: Table = (entry("m", "v1"), entry("other", "v1"))
    for number, (what, share) in enumerate(steps, start=2):
        new = entry("m", f"v{number}", share)
        if what == "without":
            standing = table.without(standing, table.of_model(standing, "m")[-1])
        else:
            standing = (table.beside if what == "beside" else table.alone)(standing, new)
        if not (mine := table.of_model(standing, "m")):
            return
        assert abs(sum(e.share for e in mine) - 1.0) < 1e-9
    assert table.current(standing, "other") == entry("other", "v1")


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5).filter(lambda s: sum(s) > 0), st.integers(1, 400))
def test_draws_follow_the_shares(shares: list[float], count: int) -> None:
    entries = [entry("m", f"v{i}", share / sum(shares)) for i, share in enumerate(shares)]
    drawn = [table.drawn(entries, (i + 0.5) / count) for i in range(count)]
    for one in entries:
        assert abs(drawn.count(one) - one.share * count) <= 1.0 + 1e-6


def test_version_numbers_go_on() -> None:
    assert table.next_version([]) == "v1"
    assert table.next_version(["v1", "v12", "v3"]) == "v13"


def test_one_in_the_shadow_is_never_the_current_version() -> None:
    shadow = replace(entry("m", "v2"), share=0.0, shadow=1.0)
    both = table.beside((entry("m", "v1"),), shadow)
    assert [each.share for each in both] == [1.0, 0.0]
    assert table.current(both, "m") == both[0]
    assert table.current((shadow,), "m") is None
    assert (table.in_shadow(both, "m"), table.in_shadow(both, "n")) == (shadow, None)
    assert {table.drawn(both, at / 7).version for at in range(7)} == {"v1"}
    (taken_over,) = table.alone(both, shadow)
    assert (taken_over.share, taken_over.shadow) == (1.0, 0.0)
    assert Entry.from_json(shadow.as_json()) == shadow
