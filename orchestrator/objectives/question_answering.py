"""Where in a context the answer to a question stands (Devlin et al. 2018, 4.2 and 4.3): fine-tuning of encoders.

A long context is read in windows that overlap; in one without the answer both targets are [CLS]. B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.loss import IGNORED_TARGET
from orchestrator.data.labelled.windows import Span, Window, context_windows, question_room
from orchestrator.data.load.next_sentence import PairIds
from orchestrator.data.load.order import Indices
from orchestrator.objectives.encoder_inputs import LOSS, MASK, TARGETS, framed, model_inputs, read_by
from orchestrator.objectives.protocol import Batch, Scorer, Tensors
from orchestrator.objectives.rows import Pieces, RowTable, cut_rows
from orchestrator.objectives.scores.answers import AnswerScores
from orchestrator.objectives.scores.mean_loss import MeanLoss
from orchestrator.objectives.scores.result import Scores, Table
from orchestrator.objectives.scores.spans import OUTSIDE, best_spans

MAX_ANSWER_TOKENS = 30
"""Of a predicted answer, as in BERT's own evaluation."""
EXAMPLES = 20
"""The first questions of a split, which the scores show with what was answered."""
_FRAME_TOKENS = 3
_OVERLAP = 3
"""A window shares a third of its room with the one before: 120 tokens of BERT's 384."""


Decode = Callable[[list[list[int]]], list[str]]


class QuestionAnswering:
    """`Objective` of two places in a row: the first and the last token of the answer.

    Args:
        decode: texts of several rows of token ids; None: the scores show no questions.
    """

    parts: tuple[str, ...] = (LOSS,)

    def __init__(self, *, label_smoothing: float = 0.0, decode: Decode | None = None) -> None:
        self._label_smoothing, self._decode = label_smoothing, decode

    def losses(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: the mean of both places' cross entropies, over windows."""
        smoothing = self._label_smoothing if model.training else 0.0
        return {LOSS: span_loss(read_by(model, tensors)["logits"], tensors[TARGETS], tensors[MASK], smoothing)}

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """As Objective: `logits` [B, T, 2]."""
        return read_by(model, tensors)

    def inputs(self, tensors: Tensors) -> Tensors:
        """As Objective."""
        return model_inputs(tensors)

    def scorer(self) -> Scorer:
        """As Objective."""
        return AnswerScorer(self._decode)


def span_loss(logits_BT2: Tensor, targets_B2: Tensor, mask_BT: Tensor, label_smoothing: float) -> Tensor:
    """The cross entropies of starts and ends over the tokens of each row, summed and halved, in fp32.

    Padding has no part in it: else the loss would depend on which rows share a micro-batch.
    """
    outside_BT1 = ~mask_BT[..., None]
    log_p_BT2 = logits_BT2.float().masked_fill(outside_BT1, float("-inf")).log_softmax(1)
    nats_B2 = -log_p_BT2.gather(1, targets_B2.clamp(min=0)[:, None])[:, 0]
    if label_smoothing:
        even_B2 = -log_p_BT2.masked_fill(outside_BT1, 0.0).sum(1) / mask_BT.sum(1, keepdim=True)
        nats_B2 = (1.0 - label_smoothing) * nats_B2 + label_smoothing * even_B2
    return (nats_B2 * (targets_B2 != IGNORED_TARGET)).sum() / 2


class Asked(NamedTuple):
    """What an answer is read from, and judged by."""

    context: str
    offsets: npt.NDArray[np.int32]
    """[tokens, 2] the characters of the context that each of its tokens covers."""
    golds: list[str]
    question_ids: Sequence[int] = ()
    """Of the first `EXAMPLES` rows alone."""


class QuestionWindow(NamedTuple):
    """Tokens [first, end) of the context of a row, which stand in the batch's row from `at` on."""

    row: int
    first: int
    end: int
    at: int
    asked: Asked | None
    """None where no text is needed: in training."""


class Candidate(NamedTuple):
    """What one window says of its question."""

    row: int
    score: float
    """Sum of the logits of the best answer; -inf if the window has none."""
    first: int
    last: int
    text: str
    no_answer: float
    """Sum of the logits of [CLS]."""
    golds: list[str]
    question_ids: Sequence[int] = ()


class AnswerScorer:
    """`Scorer` of answers: exact match, F1 of words, examples. The windows of a question meet in `result`."""

    needs_outputs = True

    def __init__(self, decode: Decode | None = None) -> None:
        self._loss, self._candidates, self._decode = MeanLoss(), list[Candidate](), decode

    def add(self, batch: Batch, losses: Mapping[str, float], outputs: Tensors) -> None:
        """As Scorer."""
        self._loss.add(losses[LOSS], batch.counts[LOSS])
        for window, logits_T2 in zip(batch.rows, outputs["logits"].numpy(), strict=True):
            self._candidates.append(candidate(window, logits_T2))

    def state(self) -> Any:
        """As Scorer."""
        return self._loss.state(), self._candidates

    def result(self, states: Sequence[Any]) -> Scores:
        """As Scorer.

        Where questions without an answer occur, an answer must score more than [CLS] (SQuAD 2, Rajpurkar et al. 2018).
        """
        loss, answers = MeanLoss(), AnswerScores()
        loss.merge(state for state, _ in states)
        questions = by_question(one for _, candidates in states for one in candidates)
        may_be_none = any(not own[0].golds for own in questions)
        chosen = [choose(own, may_be_none=may_be_none) for own in questions]
        answers.add(chosen, [own[0].golds for own in questions])
        found = answers.result()
        if self._decode is not None:
            found.tables["examples"] = _examples(questions, chosen, self._decode)
        return loss.beside(found)


def candidate(window: QuestionWindow, logits_T2: npt.NDArray[np.float32]) -> Candidate:
    """The best answer in a window, with its text."""
    asked = window.asked
    assert asked is not None, "answers are judged on examples, which carry their texts"
    context_1T = np.full((1, len(logits_T2)), OUTSIDE)
    context_1T[0, window.at : window.at + window.end - window.first] = np.arange(window.first, window.end)
    start_1T, end_1T = logits_T2.T[:, None]
    no_answer = float(np.float64(start_1T[0, 0]) + np.float64(end_1T[0, 0]))
    found = best_spans(start_1T, end_1T, context_1T, max_answer_tokens=MAX_ANSWER_TOKENS, count=1)
    if not found:
        return Candidate(window.row, float("-inf"), 0, 0, "", no_answer, asked.golds, asked.question_ids)
    first, last, score = found[0].first, found[0].last, found[0].score
    text = asked.context[asked.offsets[first, 0] : asked.offsets[last, 1]]
    return Candidate(window.row, score, first, last, text, no_answer, asked.golds, asked.question_ids)


def _examples(questions: Sequence[Sequence[Candidate]], chosen: Sequence[str], decode: Decode) -> Table:
    """What was answered to the first questions; several right answers are parted by " | "."""
    shown = [(own[0], answer) for own, answer in zip(questions, chosen, strict=True) if own[0].row < EXAMPLES]
    texts = decode([list(one.question_ids) for one, _ in shown])
    right = [" | ".join(dict.fromkeys(one.golds)) for one, _ in shown]
    return Table(("question", "prediction", "answer"), tuple(zip(texts, (a for _, a in shown), right, strict=True)))


def by_question(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """The candidates of each question, in the order of rows."""
    found: dict[int, list[Candidate]] = {}
    for one in candidates:
        found.setdefault(one.row, []).append(one)
    return [found[row] for row in sorted(found)]


def choose(candidates: Sequence[Candidate], *, may_be_none: bool) -> str:
    """The best answer over the windows of a question; "" for none.

    The score of none is its lowest: a question without an answer has none in any window.
    """
    best = min(candidates, key=lambda one: (-one.score, one.first, one.last))
    none = min(one.no_answer for one in candidates)
    return "" if may_be_none and not best.score > none else best.text


class QuestionRows:
    """`Rows` of windows: [CLS] question [SEP] part of the context [SEP].

    Args:
        training: every answer that fits is whole in a window; else windows do not know of answers, and carry the texts
            that scores need.
    """

    part = LOSS

    def __init__(self, table: RowTable, frame: PairIds, *, context: int, training: bool) -> None:
        self.table, self._frame, self._context, self._training = table, frame, context, training
        self.pieces = self._pieces()

    def collate(self, numbers: Indices) -> Batch:
        """As Rows: `targets` [B, 2], the first and the last token. `Batch.rows` are `QuestionWindow`."""
        texts, targets, windows = [], [], []
        for number in numbers.tolist():
            row, window = self._window(number)
            question = self._question(row)
            context = self.table.row("context_ids", row)[window.first : window.end]
            at = len(question) + 2
            texts.append((question, context))
            targets.append(self._target(row, window, at))
            windows.append(QuestionWindow(row, window.first, window.end, at, self._asked(row)))
        tensors = framed(texts, self._frame, context=self._context)
        tensors[TARGETS] = torch.tensor(targets or [(IGNORED_TARGET, IGNORED_TARGET)])
        return Batch(tensors, {LOSS: len(windows)}, int(self.pieces.lengths[numbers].sum()), windows)

    def _pieces(self) -> Pieces:
        questions, contexts = self.table.lengths("question_ids"), self.table.lengths("context_ids")
        questions = np.minimum(questions, question_room(self._context, max_tokens=self._context))
        rooms = self._context - _FRAME_TOKENS - questions
        cuts = {}
        for row in np.flatnonzero(contexts > rooms).tolist():
            room = int(rooms[row])
            windows = context_windows(
                int(contexts[row]),
                room_tokens=room,
                overlap_tokens=room // _OVERLAP,
                answers=self._answers(row) if self._training else (),
            )
            frame = int(questions[row]) + _FRAME_TOKENS
            cuts[row] = [(w.first, w.end, w.end - w.first + frame) for w in windows]
        return cut_rows(contexts, contexts + questions + _FRAME_TOKENS, cuts, one_target=True)

    def _window(self, number: int) -> tuple[int, Window]:
        pieces = self.pieces
        return int(pieces.rows[number]), Window(int(pieces.firsts[number]), int(pieces.ends[number]))

    def _question(self, row: int) -> npt.NDArray[Any]:
        ids: npt.NDArray[Any] = self.table.row("question_ids", row)
        return ids[: question_room(len(ids), max_tokens=self._context)]

    def _answers(self, row: int) -> list[Span]:
        spans = self.table.row("answer_spans", row).reshape(-1, 2).tolist()
        return [(first, last) for first, last in spans]

    def _target(self, row: int, window: Window, at: int) -> Span:
        """The first of the answers that the window holds whole, as places in the batch's row; else [CLS]."""
        held = next((span for span in self._answers(row) if window.holds(span)), None)
        if held is None:
            return 0, 0
        first, last = window.inside(held)
        return at + first, at + last

    def _asked(self, row: int) -> Asked | None:
        if self._training:
            return None
        offsets = self.table.row("offsets", row).reshape(-1, 2)
        question = self.table.row("question_ids", row).tolist() if row < EXAMPLES else ()
        return Asked(self.table.row("context", row), offsets, self.table.row("answers", row), question)
