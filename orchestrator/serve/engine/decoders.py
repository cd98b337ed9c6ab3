"""Which decoder computes: the compiled one on a CPU, once it is there, and torch's operations elsewhere."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from model.decode_native import NativeDecoder
from model.decode_torch import TorchDecoder
from model.gpt import GPT
from model.native.build import BuildError, build, built
from model.paged import Decoder
from orchestrator.errors import ServeError


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a decoder is made for besides its weights."""

    threads: int
    most_tokens: int
    """Of one pass."""
    int8: bool
    """Keep matrices in 8 bits."""


def decoder_at_once(model: GPT, sizes: Sizes) -> Decoder:
    """One that needs no compiler now.

    Raises:
        ServeError: 8-bit weights were asked for where they cannot be.
    """
    if sizes.int8 and model.embed.weight.dtype != torch.bfloat16:
        raise ServeError("8-bit weights are served beside bf16 ones only", fix="set serve.precision: bf16")
    library = built() if suits_native(model) else None
    if library is None:
        return TorchDecoder(model)
    return _native(library, model, sizes)


def decoder_compiled(model: GPT, sizes: Sizes) -> NativeDecoder:
    """The compiled one, after some seconds where this machine has not compiled it yet; for weights that suit it.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    return _native(build(), model, sizes)


def suits_native(model: GPT) -> bool:
    """Whether the compiled decoder is made for these weights."""
    weights = model.embed.weight
    return weights.device.type == "cpu" and weights.dtype in (torch.float32, torch.bfloat16)


def _native(library: ctypes.CDLL, model: GPT, sizes: Sizes) -> NativeDecoder:
    return NativeDecoder(library, model, threads=sizes.threads, most_tokens=sizes.most_tokens, int8=sizes.int8)


__all__ = ["BuildError", "Sizes", "decoder_at_once", "decoder_compiled", "suits_native"]
