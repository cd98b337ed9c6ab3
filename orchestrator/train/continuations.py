"""What a decoder writes after the job's prompts while it is trained: a look at it beside its scores.

It asks the engine for predictions, as a checkpoint's probe does, so it works with every engine and at every ZeRO stage.
There is no cache behind that: each token costs a pass over its whole row, so texts are few and short.

R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.generate import sample
from orchestrator.data.dataset import Dataset
from orchestrator.data.tokens.chat import ChatTemplate
from orchestrator.data.values import RowError
from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.objectives.scores.result import Table
from orchestrator.track.progress import say
from orchestrator.train.engine.protocol import TrainEngine

TEMPERATURE = 0.7
"""Not greedy: a small model left to its favourite token says little else. The seed keeps it repeatable."""
_MOST_PROMPTS = 4
_MOST_TOKENS = 32
"""Of a prompt, and of what is written after it."""
_ROWS = 2
"""In one pass: no more than a checkpoint's probe has, so that what can be saved can do this too."""


def make_continuations(job: JobSpec, dataset: Dataset, engine: TrainEngine) -> Callable[[], Table] | None:
    """What writes after the first of `serve.probe_prompts`; None for encoders, custom networks, and without prompts.

    The result is collective: every rank calls it, and rank 0's is what counts.
    """
    if job.model.kind != "gpt" or not job.serve.probe_prompts:
        return None
    prompts = job.serve.probe_prompts[:_MOST_PROMPTS]
    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_path))
    facts = dataset.manifest["tokenizer"]
    try:
        prompt_ids = [encoded_prompt(prompt, job, tokenizer, facts) for prompt in prompts]
    except JobError as error:  # worth no training: `slipway evaluate` and serving say it too
        say(f"no texts are generated in training: {error.message}")
        return None
    ends = ends_of_text(facts)

    def write() -> Table:
        picks = [picker(job, facts["vocab_size"]) for _ in prompts]
        written = continued(engine, prompt_ids, context=job.model.context, picks=picks)
        texts = (tokenizer.decode(until(ids, ends), skip_special_tokens=True) for ids in written)
        return Table(("prompt", "text"), tuple(zip(prompts, texts, strict=True)))

    return write


def continued(
    engine: TrainEngine, prompts: Sequence[list[int]], *, context: int, picks: Sequence[Callable[[Tensor], int]]
) -> list[list[int]]:
    """Tokens after each prompt, of which the beginning is cut off where it is long. Collective.

    `picks` take logits [V] to an id. No rank ends early, even where all texts have: passes hold exchanges at ZeRO stage
    3, and ranks whose arithmetic differs in the last digit may draw different tokens.
    """
    room = max(1, min(_MOST_TOKENS, context // 2))
    kept = [ids[-room:] for ids in prompts]
    width = min(context, 2 * room)  # the same for all passes: a compiled network is compiled once
    written: list[list[int]] = []
    for first in range(0, len(kept), _ROWS):
        rows = [list(ids) for ids in kept[first : first + _ROWS]]
        ids_RT = torch.zeros((_ROWS, width), dtype=torch.int64)
        for _ in range(width - room):
            for ids_T, row in zip(ids_RT, rows, strict=False):
                ids_T[: len(row)] = torch.tensor(row)  # what follows is padding, which no token before it sees
            logits_RTV = engine.outputs({"input_ids": ids_RT})["logits"]
            for number, row in enumerate(rows):
                row.append(picks[first + number](logits_RTV[number, len(row) - 1]))
        written += [row[len(prompt) :] for row, prompt in zip(rows, kept[first:], strict=False)]
    return written


def picker(job: JobSpec, vocab_size: int, *, device: torch.device | str = "cpu") -> Callable[[Tensor], int]:
    """What draws the tokens of a text from logits [V] on a device; a fresh one draws the same again."""
    generator = torch.Generator(device).manual_seed(job.training.seed)
    return functools.partial(sample, temperature=TEMPERATURE, top_p=1.0, generator=generator, allowed_size=vocab_size)


def ends_of_text(facts: Mapping[str, Any]) -> set[int | None]:
    """The tokens that end a text or a turn, by the dataset's facts about its tokenizer."""
    return {facts["eos_token_id"], facts["special_tokens"].get(facts["turn_end_token"])}


def until(ids: Iterable[int], ends: set[int | None]) -> list[int]:
    """The tokens before the first that ends."""
    return list(itertools.takewhile(lambda token: token not in ends, ids))


def encoded_prompt(prompt: str, job: JobSpec, tokenizer: Tokenizer, facts: Mapping[str, Any]) -> list[int]:
    """A prompt's tokens, at least one; where the job teaches chats it is a user's turn.

    A chat's markers are tokens; those that a plain prompt spells are letters, as in the data.

    Raises:
        JobError: the chat template refuses the prompt.
    """
    template = facts["chat_template"]
    if job.objective not in ("chat", "preference") or template is None:
        tokenizer.encode_special_tokens = True
        return list(tokenizer.encode(prompt).ids) or [facts["eos_token_id"]]
    chat = ChatTemplate(
        template,
        special_tokens=facts["special_tokens"],
        bos_token=facts["bos_token"],
        eos_token=facts["eos_token"],
    )
    try:
        text = chat.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    except RowError as error:
        raise JobError(f"serve.probe_prompts {prompt!r}: {error}", fix="write the user's words alone") from None
    tokenizer.encode_special_tokens = False
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
