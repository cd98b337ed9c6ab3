"""The kinds of labelled data, by the name that a job gives them."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.data.labelled.chat import Chat
from orchestrator.data.labelled.classification import Classification
from orchestrator.data.labelled.columns import FixedColumns
from orchestrator.data.labelled.preference import Preference
from orchestrator.data.labelled.protocol import LabelledKind
from orchestrator.data.labelled.question_answering import QuestionAnswering
from orchestrator.data.labelled.token_classification import TokenClassification
from orchestrator.data.tokens.facts import TokenizerFacts
from orchestrator.job_data import Data


def labelled_kind(data: Data, known: TokenizerFacts | None = None) -> LabelledKind:
    """The kind that `data.kind` names.

    Args:
        known: the tokenizer, where it is known before rows are read: chats that spell its special tokens, or that
            its template refuses, are then rejected row by row, and need not stop the encoding.

    Raises:
        KeyError: `data.kind` is `text`, which is not labelled.
    """
    makers: dict[str, Callable[[], LabelledKind]] = {
        "classification": lambda: Classification(data.labels),
        "token-classification": lambda: TokenClassification(data.labels),
        "question-answering": QuestionAnswering,
        "chat": lambda: Chat(data.tokenizer, known),
        "preference": lambda: Preference(data.tokenizer, known),
        "columns": lambda: FixedColumns(data.columns),
    }
    return makers[data.kind]()
