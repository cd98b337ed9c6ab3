"""What a decoder writes after the job's prompts: a look at it beside its scores."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from model.generate import generate, sample
from model.gpt import GPT
from orchestrator.data.dataset import Dataset
from orchestrator.data.tokens.chat import ChatTemplate
from orchestrator.data.values import RowError
from orchestrator.errors import JobError
from orchestrator.job import JobSpec

_MOST_TOKENS = 64
_TEMPERATURE = 0.7
"""Not greedy: a small model left to its favourite token says little else. The seed keeps it repeatable."""


def generated_texts(model: nn.Module, job: JobSpec, dataset: Dataset) -> list[dict[str, str]] | None:
    """[{"prompt", "text"}] of `serve.probe_prompts`, as turns of a chat where the job teaches chats; None for others.

    A prompt longer than half of the context loses its beginning.
    """
    if not isinstance(model, GPT):
        return None
    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_path))
    return [
        {"prompt": prompt, "text": _continued(model, prompt, job, tokenizer, dataset.manifest["tokenizer"])}
        for prompt in job.serve.probe_prompts
    ]


def _continued(model: GPT, prompt: str, job: JobSpec, tokenizer: Tokenizer, facts: Mapping[str, Any]) -> str:
    half = max(1, model.config.context // 2)
    ids = _prompt_ids(prompt, job, tokenizer, facts)[-half:] or [facts["eos_token_id"]]
    ends = {facts["eos_token_id"], facts["special_tokens"].get(facts["turn_end_token"])}
    pick = functools.partial(
        sample,
        temperature=_TEMPERATURE,
        top_p=1.0,
        generator=torch.Generator(model.embed.weight.device).manual_seed(job.training.seed),
        allowed_size=facts["vocab_size"],
    )
    made = itertools.takewhile(lambda token: token not in ends, generate(model, ids, pick=pick))
    text: str = tokenizer.decode(list(itertools.islice(made, min(_MOST_TOKENS, half))), skip_special_tokens=True)
    return text


def _prompt_ids(prompt: str, job: JobSpec, tokenizer: Tokenizer, facts: Mapping[str, Any]) -> list[int]:
    """A chat's markers are tokens; those that a plain prompt spells are letters, as in the data."""
    template = facts["chat_template"]
    if job.objective not in ("chat", "preference") or template is None:
        tokenizer.encode_special_tokens = True
        return list(tokenizer.encode(prompt).ids)
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
