"""What a decoder writes after the job's prompts: a look at it beside its scores."""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer
from torch import nn

from model.generate import generate
from model.gpt import GPT
from orchestrator.data.dataset import Dataset
from orchestrator.job import JobSpec
from orchestrator.train.continuations import encoded_prompt, ends_of_text, picker, until

_MOST_TOKENS = 64


def generated_texts(model: nn.Module, job: JobSpec, dataset: Dataset) -> list[dict[str, str]] | None:
    """[{"prompt", "text"}] of `serve.probe_prompts`, as turns of a chat where the job teaches chats; None for others.

    A prompt longer than half of the context loses its beginning.

    Raises:
        JobError: the chat template refuses a prompt.
    """
    if not isinstance(model, GPT):
        return None
    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_path))
    facts = dataset.manifest["tokenizer"]
    half = max(1, model.config.context // 2)

    def written(prompt: str) -> str:
        ids = encoded_prompt(prompt, job, tokenizer, facts)[-half:]
        pick = picker(job, facts["vocab_size"], device=model.embed.weight.device)
        made = itertools.islice(generate(model, ids, pick=pick), min(_MOST_TOKENS, half))
        text: str = tokenizer.decode(until(made, ends_of_text(facts)), skip_special_tokens=True)
        return text

    return [{"prompt": prompt, "text": written(prompt)} for prompt in job.serve.probe_prompts]
