"""An engine at work, as it reports itself."""

from __future__ import annotations

from orchestrator.serve.engine.protocol import Load

LOAD = Load(
    running=4,
    waiting=2,
    tokens_in_flight=1000,
    cache_tokens=2000,
    cache_limit_tokens=4000,
    oldest_wait_s=0.3,
    requests=9,
    prompt_tokens=90,
    cached_prompt_tokens=0,
    completion_tokens=900,
    steps=100,
    last_step_s=0.01,
    compiled=True,
)
