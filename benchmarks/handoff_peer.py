"""The peer of handoff.py: DeepSpeed's ZeRO 2, its `zero_to_fp32`, `from_pretrained`, and Ray Serve, as documented.

    python benchmarks/handoff_peer.py FOLDER EVERY_S

trains until it is ended, on one thread, and saves every so many seconds; `latest` names the newest checkpoint.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from decode import SHAPE, network
from handoff_clients import VERSION

ROWS = 2
LATEST = "latest"


def train(folder: Path, every_s: float) -> None:
    """ZeRO 2 in bf16, over the network of transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from model.huggingface import to_hf_config, to_hf_state
    from orchestrator.train.engine.deepspeed_engine import import_deepspeed
    from orchestrator.train.group import join_group

    torch.set_num_threads(1)
    join_group()
    own = network("fp32")
    data = to_hf_config(own.config, bos_token_id=None, eos_token_id=None, dtype="float32")
    shape = AutoConfig.for_model(data.pop("model_type"), **data)
    model = AutoModelForCausalLM.from_config(shape)  # type: ignore[no-untyped-call]
    model.load_state_dict(to_hf_state(own.state_dict(), own.config), strict=False)
    model.config.save_pretrained(folder)
    settings = {
        "train_micro_batch_size_per_gpu": ROWS,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine, *_ = import_deepspeed().initialize(model=model, optimizer=optimizer, config=settings)
    generator, saved_at = torch.Generator().manual_seed(0), float("-inf")
    for step in itertools.count(1):
        ids = torch.randint(0, SHAPE["vocab_size"], (ROWS, SHAPE["context"]), generator=generator)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
        if time.monotonic() - saved_at >= every_s:
            engine.save_checkpoint(str(folder), tag=f"step-{step:08d}")
            saved_at = time.monotonic()


def newest(folder: Path) -> str | None:
    """The tag of the newest whole checkpoint; None: there is none yet."""
    latest = folder / LATEST
    return (latest.read_text(encoding="utf-8").strip() or None) if latest.is_file() else None


def collect(folder: Path, tag: str) -> Path:
    """A checkpoint as a folder that `from_pretrained` reads, by the script that DeepSpeed puts beside it.

    As it comes, in torch's own format: its `--safe_serialization` refuses the tied embedding.
    """
    into = folder / f"whole-{tag}"
    script = [sys.executable, str(folder / "zero_to_fp32.py"), str(folder), str(into), "--tag", tag]
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    (into / "config.json").write_bytes((folder / "config.json").read_bytes())
    return into


def application(folder: Path, tag: str, *, threads: int) -> Any:
    """One replica that answers a POST of token ids, whole or as a stream of events."""
    from ray import serve

    class Generate:
        def __init__(self, path: str, version: str) -> None:
            import torch
            from transformers import AutoModelForCausalLM

            torch.set_num_threads(threads)
            self._torch, self._version = torch, version
            self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
            self._model.eval()  # type: ignore[no-untyped-call]

        async def __call__(self, request: Any) -> Any:
            from starlette.responses import StreamingResponse

            return StreamingResponse(self._events(await request.json()), headers={VERSION: self._version})

        async def _events(self, asked: dict[str, Any]) -> AsyncIterator[str]:
            tokens: asyncio.Queue[int | None] = asyncio.Queue()
            making = asyncio.create_task(asyncio.to_thread(self._make, asked, tokens, asyncio.get_running_loop()))
            while (token := await tokens.get()) is not None:
                yield f"data: {token}\n\n"
            await making
            yield "data: [DONE]\n\n"

        def _make(
            self, asked: dict[str, Any], tokens: asyncio.Queue[int | None], loop: asyncio.AbstractEventLoop
        ) -> None:
            from transformers.generation.streamers import BaseStreamer

            class Told(BaseStreamer):
                is_prompt = True

                def put(self, value: Any) -> None:
                    for token in [] if self.is_prompt else value.tolist():
                        loop.call_soon_threadsafe(tokens.put_nowait, token)
                    self.is_prompt = False

                def end(self) -> None:
                    pass

            ids, wanted = self._torch.tensor([asked["prompt"]]), asked["max_tokens"]
            lengths = {"max_new_tokens": wanted, "min_new_tokens": wanted}
            mask = self._torch.ones_like(ids)
            try:
                with self._torch.inference_mode():
                    self._model.generate(
                        ids, attention_mask=mask, do_sample=False, pad_token_id=0, streamer=Told(), **lengths
                    )
            finally:
                loop.call_soon_threadsafe(tokens.put_nowait, None)

    deployment: Any = serve.deployment(Generate, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=1000)
    return deployment.bind(str(folder), tag)


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    train(Path(sys.argv[1]), float(sys.argv[2]))
