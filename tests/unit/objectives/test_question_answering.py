"""Answers in contexts: windows that lose none, targets that point at them, predictions over all windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import FRAME, encoder, ids, mean_loss, overfit, read_step, score, table, twin
from hypothesis import given
from hypothesis import strategies as st

from model.config import HeadConfig
from orchestrator.objectives.encoder_inputs import IDS, LOSS, MASK, SEGMENTS, TARGETS
from orchestrator.objectives.protocol import Batch
from orchestrator.objectives.question_answering import (
    EXAMPLES,
    AnswerScorer,
    Asked,
    Candidate,
    QuestionAnswering,
    QuestionRows,
    QuestionWindow,
    choose,
    span_loss,
)
from orchestrator.objectives.rows import RowExamples, RowFeed, RowTable

Questions = list[tuple[int, int, list[tuple[int, int]]]]
"""Tokens of a question, of its context, and the spans of its answers."""
HEAD = HeadConfig("question-answering")
questions = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(1, 60), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 12)), max_size=2)
    ),
    min_size=1,
    max_size=5,
)


def asked(folder: Path, rows: Questions, *, seed: int = 0) -> RowTable:
    """Token i of a context is the word `wi`."""
    rng = np.random.default_rng(seed)
    contexts = [[f"w{i}" for i in range(tokens)] for _, tokens, _ in rows]
    ends = [np.cumsum([len(word) + 1 for word in words]) - 1 for words in contexts]
    starts = [end - [len(word) for word in words] for end, words in zip(ends, contexts, strict=True)]
    pairs = zip(starts, ends, strict=True)
    return table(
        folder,
        [
            {
                "question_ids": [ids(rng, tokens) for tokens, _, _ in rows],
                "context_ids": [ids(rng, tokens) for _, tokens, _ in rows],
                "offsets": [np.stack([start, end], 1).reshape(-1).astype(np.int32) for start, end in pairs],
                "answer_spans": [np.array(spans, np.int32).reshape(-1) for _, _, spans in rows],
                "context": [" ".join(words) for words in contexts],
                "answers": [
                    [" ".join(words[a : b + 1]) for a, b in spans]
                    for (_, _, spans), words in zip(rows, contexts, strict=True)
                ],
                "id": [f"q{i}" for i in range(len(rows))],
            }
        ],
    )


def test_a_question_and_its_context_are_framed(tmp_path: Path) -> None:
    made = asked(tmp_path, [(2, 4, [(1, 2)]), (3, 2, [])])
    batch = QuestionRows(made, FRAME, context=16, training=True).collate(np.array([0, 1]))
    q0, q1 = (made.row("question_ids", i).tolist() for i in (0, 1))
    c0, c1 = (made.row("context_ids", i).tolist() for i in (0, 1))
    assert batch.tensors[IDS].tolist() == [
        [2, *q0, 3, *c0, 3] + [0] * 7,
        [2, *q1, 3, *c1, 3] + [0] * 8,
    ]
    assert batch.tensors[SEGMENTS].tolist() == [[0] * 4 + [1] * 5 + [0] * 7, [0] * 5 + [1] * 3 + [0] * 8]
    assert batch.tensors[TARGETS].tolist() == [[5, 6], [0, 0]]
    assert batch.rows == [QuestionWindow(0, 0, 4, 4, None), QuestionWindow(1, 0, 2, 5, None)]
    assert (batch.counts, batch.tokens) == ({LOSS: 2}, 17)


@given(rows=questions, context=st.integers(9, 40), training=st.booleans())
def test_windows_cover_every_context_and_lose_no_answer(
    tmp_path_factory: pytest.TempPathFactory, rows: list, context: int, training: bool
) -> None:
    placed: Questions = []
    for question, tokens, answers in rows:
        firsts = [(int(at * (tokens - 1)), length) for at, length in answers]
        placed.append((question, tokens, [(first, min(first + length, tokens) - 1) for first, length in firsts]))
    made = asked(tmp_path_factory.mktemp("asked"), placed)
    windows = QuestionRows(made, FRAME, context=context, training=training)
    batch = windows.collate(np.arange(len(windows.pieces)))
    assert batch.tensors[IDS].shape[1] <= context
    assert batch.tensors[MASK].sum(1).tolist() == windows.pieces.lengths.tolist()
    covered: list[set[int]] = [set() for _ in placed]
    found: list[set[tuple[int, int]]] = [set() for _ in placed]
    for i, window in enumerate(batch.rows):
        own = batch.tensors[IDS][i, window.at : window.at + window.end - window.first]
        assert own.tolist() == made.row("context_ids", window.row)[window.first : window.end].tolist()
        covered[window.row] |= set(range(window.first, window.end))
        start, end = batch.tensors[TARGETS][i].tolist()
        if (start, end) != (0, 0):
            found[window.row].add((start - window.at + window.first, end - window.at + window.first))
    for row, (_, tokens, spans) in enumerate(placed):
        assert covered[row] == set(range(tokens))
        assert found[row] <= set(spans)
        room = context - 3 - min(placed[row][0], (context - 3) // 2)
        own = [window for window in batch.rows if window.row == row]
        if training:
            fitting = [span for span in spans if span[1] + 1 - span[0] <= room]
            assert all(any(w.first <= a and b < w.end for w in own) for a, b in fitting)
            assert bool(found[row]) == bool(fitting)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_window_comes_once_an_epoch_at_any_world_size(tmp_path: Path, num_ranks: int) -> None:
    rng = np.random.default_rng(0)
    made = asked(tmp_path, [(4, n, [(n - 1, n - 1)]) for n in rng.integers(1, 50, 19).tolist()])
    rows = QuestionRows(made, FRAME, context=20, training=True)
    feed = RowFeed(rows, samples_per_step=7, seed=1)
    steps = range(1, -(-len(rows.pieces) // 7) + 1)
    seen = [w for step in steps for batch in read_step(feed, step, num_ranks=num_ranks) for w in batch.rows]
    assert len(seen) == len(set(seen)) == len(rows.pieces) > 19
    assert feed.totals(1) == {LOSS: 7}


def test_the_loss_is_that_of_transformers_where_nothing_is_padded(tmp_path: Path) -> None:
    made = asked(tmp_path, [(3, 10, [(a, a + 1)]) for a in range(5)] + [(3, 10, [])])
    batch = QuestionRows(made, FRAME, context=16, training=True).collate(np.arange(6))
    assert batch.tensors[MASK].all()
    model = encoder(HEAD).eval()
    starts, ends = batch.tensors[TARGETS].T
    with torch.no_grad():
        theirs = twin(model)(
            **{name: batch.tensors[name] for name in (IDS, SEGMENTS, MASK)}, start_positions=starts, end_positions=ends
        )
    assert mean_loss(QuestionAnswering(), model, [batch]).item() == pytest.approx(theirs.loss.item(), abs=1e-5)


def test_the_loss_does_not_depend_on_padding(tmp_path: Path) -> None:
    made = asked(tmp_path, [(2, 3, [(1, 1)]), (4, 20, [(5, 9)])])
    rows = QuestionRows(made, FRAME, context=32, training=True)
    model, objective = encoder(HEAD).eval(), QuestionAnswering()
    whole = mean_loss(objective, model, [rows.collate(np.arange(2))])
    alone = [rows.collate(np.array([0])), rows.collate(np.array([1])), rows.collate(np.zeros(0, np.int64))]
    assert mean_loss(objective, model, alone).item() == pytest.approx(whole.item(), abs=1e-6)


def test_smoothing_spreads_over_the_tokens_of_a_row() -> None:
    logits = torch.randn(2, 6, 2, requires_grad=True)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    targets = torch.tensor([[1, 2], [0, 3]])
    wanted = sum(
        torch.nn.functional.cross_entropy(logits[i, : mask[i].sum(), k][None], targets[i, k][None], label_smoothing=0.3)
        for i in range(2)
        for k in range(2)
    )
    loss = span_loss(logits, targets, mask, 0.3)
    assert loss.item() == pytest.approx(wanted.item() / 2, abs=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def one(row: int, score: float, text: str, *, no_answer: float = 0.0, golds: tuple[str, ...] = ("x",)) -> Candidate:
    return Candidate(row, score, 0, 0, text, no_answer, list(golds))


def test_the_best_window_answers_and_none_is_the_lowest() -> None:
    windows = [one(0, 1.0, "a", no_answer=3.0), one(0, 2.0, "b", no_answer=1.5)]
    assert choose(windows, may_be_none=False) == "b"
    assert choose(windows, may_be_none=True) == "b"
    assert choose([one(0, 1.0, "a", no_answer=1.5)], may_be_none=True) == ""
    assert choose([one(0, float("-inf"), "")], may_be_none=False) == ""


def answered(window: QuestionWindow, start: int, end: int, height: float) -> tuple[Batch, dict[str, torch.Tensor]]:
    logits = torch.zeros(1, 10, 2)
    logits[0, start, 0] = logits[0, end, 1] = height
    return Batch({}, {LOSS: 1}, 0, [window]), {"logits": logits}


def test_windows_of_a_question_meet_whichever_ranks_they_are_on() -> None:
    offsets = np.array([[0, 2], [3, 5], [6, 8], [9, 11], [12, 14], [15, 17]], np.int32)
    known = Asked("w0 w1 w2 w3 w4 w5", offsets, ["w3 w4"])
    ranks = [AnswerScorer(), AnswerScorer()]
    weak, strong = QuestionWindow(0, 0, 4, 3, known), QuestionWindow(0, 2, 6, 3, known)
    for rank, (window, places, height) in zip(ranks, [(strong, (4, 5), 2.0), (weak, (3, 3), 1.0)], strict=True):
        batch, outputs = answered(window, *places, height)
        rank.add(batch, {LOSS: 0.5}, outputs)
    found = ranks[0].result([rank.state() for rank in ranks])
    assert found.metrics == pytest.approx({"loss": 0.5, "exact_match": 1.0, "f1": 1.0})
    assert "examples" not in found.tables


def test_the_first_questions_are_shown_with_what_was_answered(tmp_path: Path) -> None:
    made = asked(tmp_path, [(2, 6, [(1, 2), (1, 2), (4, 4)])] * EXAMPLES + [(2, 6, [])] * 3)
    rows = QuestionRows(made, FRAME, context=32, training=False)
    scorers = [AnswerScorer(lambda rows: [" ".join(map(str, ids)) for ids in rows]) for _ in range(2)]
    for scorer, numbers in zip(scorers, (np.arange(7, len(rows.pieces)), np.arange(7)), strict=True):
        batch = rows.collate(numbers)
        logits = torch.zeros(len(batch.rows), batch.tensors[IDS].shape[1], 2)
        for i, window in enumerate(batch.rows):
            logits[i, window.at + 1, 0] = logits[i, window.at + 2, 1] = 5.0
        scorer.add(batch, {LOSS: 0.5}, {"logits": logits})
    table = scorers[0].result([scorer.state() for scorer in scorers]).tables["examples"]
    assert table.columns == ("question", "prediction", "answer")
    assert len(table.rows) == EXAMPLES
    for row, (question, prediction, answer) in enumerate(table.rows):
        assert question == " ".join(map(str, made.row("question_ids", row)))
        assert (prediction, answer) == ("w1 w2", "w1 w2 | w4")


def test_where_questions_without_an_answer_occur_none_is_an_answer() -> None:
    offsets = np.array([[0, 2]], np.int32)
    scorer = AnswerScorer()
    for row, (golds, place) in enumerate([([], 0), (["w0"], 3)]):
        batch, outputs = answered(QuestionWindow(row, 0, 1, 3, Asked("w0", offsets, golds)), place, place, 5.0)
        scorer.add(batch, {LOSS: 0.5}, outputs)
    assert scorer.result([scorer.state()]).metrics["exact_match"] == 1.0


def test_sixteen_rows_are_learned_by_heart(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    spans = [(int(a), int(a) + i % 3) for i, a in enumerate(rng.integers(0, 16, 16))]
    made = asked(tmp_path, [(3, 20, [span]) for span in spans])
    training = QuestionRows(made, FRAME, context=20, training=True)
    model, objective = encoder(HEAD), QuestionAnswering()
    overfit(objective, model, training.collate(np.arange(len(training.pieces))), steps=100)
    examples = RowExamples(QuestionRows(made, FRAME, context=20, training=False))
    assert examples.count == 32
    found = score(objective, model, [[examples.read(0, 11)], [examples.read(11, 20), examples.read(20, 32)]])
    assert found.metrics["exact_match"] >= 0.9
    assert found.metrics["f1"] >= found.metrics["exact_match"]
