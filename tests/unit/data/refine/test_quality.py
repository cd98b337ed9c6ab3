"""Rules that remove a document: each at its limit and just past it, with the numbers of the papers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.refine.c4 import C4
from orchestrator.data.refine.clean import Cleaner
from orchestrator.data.refine.quality import GOPHER, BlockedWords, active_rules
from orchestrator.data.refine.repetition import Ngrams, duplicates
from orchestrator.errors import JobError
from orchestrator.job_data import Clean, Rules


def items(number: int, repeats: int, joint: str) -> str:
    """So many different pieces of 8 characters, and the first of them again so many times."""
    return joint.join([f"piece{i:03d}" for i in range(number)] + ["piece000"] * repeats)


def repeated_run(size: int, characters: int, total: int) -> str:
    """A run of `size` words twice, `characters` each time, and one long word to come to `total`."""
    words = [chr(ord("a") + i) for i in range(size)]
    words[0] += "x" * (characters - size)
    return " ".join([*words, "z" * (total - 2 * characters), *words])


FILLER = " ".join(["word"] * 8)
AT_AND_PAST_GOPHER = {
    "min_words": ("word " * 50, "word " * 49),
    "max_words": ("word " * 100_000, "word " * 100_001),
    "min_mean_word_length": ("abc de fghi", "abc de fgh"),
    "max_mean_word_length": ("abcdefghij " * 9, "abcdefghij " * 9 + "abcdefghijk"),
    "max_symbols_per_word": (f"{FILLER} word#word word", f"{FILLER} {FILLER} # # #"),
    "max_bullet_lines": ("\u2022 one\n" * 8 + "- one\nprose", "* one\n" * 10 + "-prose"),
    "max_ellipsis_lines": ("so...\n" * 3 + "so.\n\n" * 7, "so\u2026\n" * 3 + "so... \n" + "so.\n" * 9),
    "min_alphabetic_words": ("one two3 4 5b six", "1 2 three four five six seven eight nine"),
    "min_stop_words": ("The cat, and", "the the THE andes bent"),
    "max_duplicate_lines": (items(7, 3, "\n"), items(9, 4, " \n\n")),
    "max_duplicate_paragraphs": (items(7, 3, "\n\n"), items(9, 4, "\n \n")),
    "max_duplicate_line_characters": (items(8, 2, "\n"), items(11, 3, "\n")),
    "max_duplicate_paragraph_characters": (items(8, 2, "\n\n"), items(11, 3, "\n\n")),
    **{f"max_top_{n}gram": (repeated_run(n, c, 100), repeated_run(n, c, 99)) for n, c in ((2, 10), (3, 9), (4, 8))},
    **{f"max_duplicate_{n}gram": (repeated_run(n, 20 - n, 100), repeated_run(n, 20 - n, 99)) for n in range(5, 11)},
}
AT_AND_PAST_C4 = {
    "line_terminal_punctuation": ('Ends. \nEnds!\nEnds?\nHe said "ends"\n\u201cEnds\u201d', "Ends.\nGoes on"),
    "line_min_words": ("one two three four five", "one two three four five\none two three four"),
    "line_max_word_length": ("w" * 1000 + " word", "w" * 1001 + " word\nword"),
    "line_javascript": ("Java scripts", "Java\nPlease enable JavaScript to go on."),
    "line_policy": ("Eat cookies", "Eat\nThis site uses Cookies."),
    "citations": ("an [x] and [1a] and [Edit]", "word [1], word[citation needed] and heading[edit] or []"),
    "lorem_ipsum": ("lorem and ipsum", "So: Lorem Ipsum dolor"),
    "curly_bracket": ("f(x) [y] }", "f {"),
    "min_sentences": ("One. Two! Three", "One. Two.5 and e.g.nothing"),
}
CASES = [("gopher", name, *pair) for name, pair in AT_AND_PAST_GOPHER.items()]
CASES += [("c4", name, *pair) for name, pair in AT_AND_PAST_C4.items()]
THRESHOLDS = [case[1] for case in CASES if (GOPHER | C4)[case[1]] is not True]


def only(preset: str, *names: str) -> Cleaner:
    """The preset with every rule off but these."""
    off = {field: "off" for field in Rules.model_fields if field != "blocked_words" and field not in names}
    return Cleaner(Clean(quality=preset, rules=off))


def is_hit(cleaner: Cleaner, rule: str, text: str) -> bool:
    """Whether this rule removed the document, or took something out of it."""
    result = cleaner.clean(text)
    assert result.rule in (None, rule)
    return result.rule == rule or rule in dict(result.taken)


def test_every_rule_has_its_case():
    assert {case[1] for case in CASES} | {"blocked_words"} == set(Rules.model_fields)


@pytest.mark.parametrize(("preset", "rule", "at", "past"), CASES, ids=[case[1] for case in CASES])
def test_a_document_at_the_limit_stays_and_one_past_it_goes(preset, rule, at, past):
    cleaner = only(preset, rule)
    assert not is_hit(cleaner, rule, at)
    assert cleaner.clean(at).text == at
    assert is_hit(cleaner, rule, past)


@pytest.mark.parametrize(("preset", "rule", "at", "past"), CASES, ids=[case[1] for case in CASES])
def test_off_switches_a_rule_off_in_its_preset(preset, rule, at, past):
    result = only(preset).clean(past)
    assert (result.rule, result.text, result.taken) == (None, past, ())
    assert rule not in active_rules(Clean(quality=preset, rules={rule: "off"}))


@pytest.mark.parametrize(("preset", "rule", "at", "past"), CASES, ids=[case[1] for case in CASES])
def test_a_rule_works_without_a_preset(preset, rule, at, past):
    limit = (GOPHER | C4)[rule]
    cleaner = Cleaner(Clean(rules={rule: "on" if limit is True else limit}))
    assert is_hit(cleaner, rule, past)
    assert not is_hit(cleaner, rule, at)


@pytest.mark.parametrize("rule", THRESHOLDS)
def test_a_number_replaces_the_presets(rule):
    preset = "gopher" if rule in GOPHER else "c4"
    assert active_rules(Clean(quality=preset, rules={rule: 0}))[rule] == 0.0


def test_presets_hold_what_was_published():
    assert active_rules(Clean()) == {}
    assert active_rules(Clean(quality="gopher")) == GOPHER
    assert active_rules(Clean(quality="c4")) == C4
    duplicate = {n: GOPHER[f"max_duplicate_{n}gram"] for n in range(5, 11)}
    assert duplicate == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    assert list(active_rules(Clean(quality="gopher"))) == [name for name in Rules.model_fields if name in GOPHER]


def test_a_limit_of_zero_is_a_limit():
    assert Cleaner(Clean(rules={"max_symbols_per_word": 0})).clean("one # two").rule == "max_symbols_per_word"


def test_ellipses_are_symbols_too():
    cleaner = only("gopher", "max_symbols_per_word")
    assert cleaner.clean(f"{FILLER} word... word").rule is None
    assert cleaner.clean(f"{FILLER} word\u2026 ...").rule == "max_symbols_per_word"
    assert cleaner.clean(f"{FILLER} word... #").rule is None  # each by itself


def test_the_first_rule_in_order_is_named():
    settings = Clean(rules={"max_duplicate_lines": 0.1, "min_words": 5, "curly_bracket": True})
    assert Cleaner(settings).clean("{\n{").rule == "min_words"


words_of_few_kinds = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), min_size=1, max_size=60)


@given(words_of_few_kinds, st.integers(5, 10))
def test_duplicate_characters_are_each_counted_once(words, size):
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    inside = {i + k for i, run in enumerate(runs) if run in runs[:i] for k in range(size)}
    expected = sum(len(words[i]) for i in inside) / len("".join(words))
    assert Ngrams(words).duplicate_share(size) == pytest.approx(expected)


@given(words_of_few_kinds, st.integers(2, 4))
def test_the_top_run_is_the_most_frequent_and_of_those_the_longest(words, size):
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    most = max(map(runs.count, runs), default=0)
    shares = set()
    longest = max((len("".join(run)) for run in runs if runs.count(run) == most), default=0)
    for top in {run for run in runs if runs.count(run) == most and len("".join(run)) == longest}:
        inside = {i + k for i, run in enumerate(runs) if run == top for k in range(size)}
        shares.add(round(sum(len(words[i]) for i in inside) / len("".join(words)), 9))
    assert round(Ngrams(words).top_share(size), 9) in (shares if most > 1 else {0.0})


@given(words_of_few_kinds)
def test_measures_may_be_asked_for_in_any_order(words):
    backwards, forwards = Ngrams(words), Ngrams(words)
    sizes = range(2, 11)
    assert [backwards.duplicate_share(n) for n in reversed(sizes)][::-1] == [forwards.duplicate_share(n) for n in sizes]


def test_nothing_repeats_in_nothing():
    assert duplicates([]).items == 0.0
    assert Ngrams(["one"]).top_share(2) == 0.0
    assert Ngrams([]).duplicate_share(5) == 0.0


def test_the_first_of_several_lines_is_no_duplicate():
    shares = duplicates(["aaaa", "aaaa", "b", "c"])
    assert (shares.items, shares.characters) == (0.25, 0.4)


@pytest.mark.parametrize(
    ("text", "is_hit"),
    [
        ("A DARN shame", True),
        ("darn!", True),
        ("darned", False),
        ("the darn_it", False),
        ("what the heck", True),
        ("what the hecks", False),
        ("what the\nheck", False),
        ("STRASSE", True),
        ("it's c++ here", True),
        ("it's c here", False),
        ("cafe\u0301", True),
        ("nothing", False),
    ],
)
def test_blocked_words_are_whole_words_in_any_case(text, is_hit):
    blocked = ["Darn", "the heck", "stra\u00dfe", "c++", "caf\u00e9"]
    assert (Cleaner(Clean(rules={"blocked_words": blocked})).clean(text).rule == "blocked_words") is is_hit


def test_no_blocked_words_block_nothing():
    assert not BlockedWords([]).occur_in("anything")


def test_a_blank_blocked_word_is_an_error():
    with pytest.raises(JobError, match="blocked_words has a blank word"):
        Cleaner(Clean(rules={"blocked_words": ["fine", " "]}))
