"""What a forward pass leaves for the backward pass, and what stands beside it. Pure.

Counted as Korthikanti et al. 2022 (section 4) do, over the tensors that autograd saves in our networks; attention goes
through SDPA, which saves its inputs, its output and a number a row, and no T x T matrix. A unit test compares the sums
with what autograd really saves.

N tokens of a pass, D width, F hidden width, H heads, G key/value heads, K head width, V vocabulary; c bytes of a number
that is computed with.
"""

from __future__ import annotations

from orchestrator.plan.network import Case

_MIN_ROWS = 128
_CHUNK_NUMBERS, _CHUNK_NUMBERS_ON_GPU = 2**21, 2**26
"""Of the chunked cross entropy, as `model/loss.py` has them (it imports torch, and a test holds them equal)."""


def activations(case: Case) -> int:
    """Bytes that autograd keeps of a micro-batch: all layers; with checkpointing the input of each, and one layer."""
    config, tokens = case.config, case.tokens
    layers = _layer(case) * config.layers
    if case.train.activation_checkpointing:
        layers = case.compute_bytes * config.width * config.layers + _layer(case)
    return tokens * (layers + _ends(case))


def passing(case: Case) -> int:
    """Bytes of the gradients that flow through one layer: of its hidden vectors, and of its input and output."""
    config = case.config
    wide = 2 if config.biased else 3
    return case.tokens * case.compute_bytes * (wide * config.hidden + 2 * config.width)


def logits(case: Case) -> int:
    """Bytes of a chunk of the cross entropy: logits and probabilities in fp32, and once in c bytes for a product."""
    if not case.network.projected:
        return 0
    judged = round(case.tokens * case.network.judged)
    return min(chunk_rows(case), judged) * case.config.vocab_size * (8 + case.compute_bytes)


def chunk_rows(case: Case) -> int:
    """Tokens whose logits stand at a time."""
    numbers = _CHUNK_NUMBERS_ON_GPU if case.on_gpu else _CHUNK_NUMBERS
    return max(_MIN_ROWS, numbers // case.config.vocab_size)


def table_gradient(case: Case) -> int:
    """Bytes of the gradient of the vocabulary's table, which autograd makes whole before it adds it up."""
    return 0 if case.train.lora else case.compute_bytes * case.config.vocab_size * case.config.width


def loss_peak(case: Case) -> int:
    """Bytes that the cross entropy takes beside the activations, at its highest.

    It gathers the gradients of its input (c bytes) and of its weight (fp32) while it goes forward, a chunk at a time,
    and in the backward pass scales both into copies, of which the weight's is rounded to c bytes.
    """
    if not case.network.projected:
        return 0
    c, low = case.compute_bytes, case.compute_bytes < 4
    inputs = c * round(case.tokens * case.network.judged) * case.config.width
    weight = 0 if case.train.lora else 4 * case.config.vocab_size * case.config.width
    rounded = table_gradient(case) if low else 0
    return inputs + weight + max(logits(case) + rounded, inputs + weight + rounded)


def _layer(case: Case) -> int:
    """Bytes a token of one block: its norms, attention, and feed-forward layers."""
    config, c = case.config, case.compute_bytes
    if config.biased:  # LayerNorm's inputs and outputs; the hidden vectors before and after GELU
        return 4 * c * config.width + _attention(case) + 2 * c * config.hidden + 2 * _dropout(case)
    # SwiGLU's gate, its SiLU, up, and their product.
    return 2 * _rms_norm(case) + _attention(case) + 4 * c * config.hidden + 2 * _dropout(case)


def _attention(case: Case) -> int:
    """Queries, keys, values, output, and a number a row of each head.

    With dropout torch has no fused kernel for the CPU: it makes the T x T matrix in fp32, three times.
    """
    config, c = case.config, case.compute_bytes
    if config.dropout and not case.on_gpu:
        return (12 + c) * config.width + 12 * config.heads * config.context
    return c * (2 * config.width + 2 * config.kv_heads * config.head_width) + 4 * config.heads


def _rms_norm(case: Case) -> int:
    """A norm's input and output, and a number a vector."""
    return 2 * case.compute_bytes * case.config.width + 4


def _dropout(case: Case) -> int:
    """A mask over hidden vectors: of bytes on a GPU, of the values' type on the CPU."""
    if not case.config.dropout:
        return 0
    return case.config.width * (1 if case.on_gpu else case.compute_bytes)


def _ends(case: Case) -> int:
    """Before the first block and after the last: ids and targets (int64), a mask, the last norm (BERT: the first)."""
    norm = 2 * case.compute_bytes * case.config.width if case.config.biased else _rms_norm(case)
    return 16 + norm + _dropout(case)
