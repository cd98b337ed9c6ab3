"""The peer of service.py: static batches of transformers' `generate` on Ray Serve; all wait for a batch's longest."""

from __future__ import annotations

import asyncio
from typing import Any


def static_application(export: str, *, threads: int, most: int, wait_s: float) -> Any:
    """One replica that answers a POST of a prompt's token ids."""
    from ray import serve

    class Static:
        def __init__(self) -> None:
            import torch
            from transformers import AutoModelForCausalLM

            torch.set_num_threads(threads)
            self._torch = torch
            self._model: Any = AutoModelForCausalLM.from_pretrained(export, dtype=torch.bfloat16)
            self._model.eval()  # type: ignore[no-untyped-call]

        @serve.batch(max_batch_size=most, batch_wait_timeout_s=wait_s)
        async def generate(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
            await asyncio.to_thread(self._generate, asked)
            return [{"usage": {"completion_tokens": each["max_tokens"]}} for each in asked]

        def _generate(self, asked: list[dict[str, Any]]) -> None:
            torch = self._torch
            longest = max(len(each["prompt"]) for each in asked)
            ids = torch.zeros(len(asked), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, each in enumerate(asked):
                ids[row, longest - len(each["prompt"]) :] = torch.tensor(each["prompt"])
                mask[row, longest - len(each["prompt"]) :] = 1
            new = max(each["max_tokens"] for each in asked)
            with torch.inference_mode():
                self._model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                )

        async def __call__(self, request: Any) -> dict[str, Any]:
            found: dict[str, Any] = await self.generate(await request.json())
            return found

    deployment: Any = serve.deployment(Static, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=1000)
    return deployment.bind()
