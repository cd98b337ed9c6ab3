"""A decoder on a CPU whose whole pass is compiled (`model/native`).

A number in its results depends on its own sequence alone: not on what else is in the pass, nor on how the prompt was
cut into passes, nor on the number of threads.

Shapes: as in `paged`; I inputs of a projection.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.attention import rotary_tables
from model.config import ModelConfig
from model.gpt import GPT, Block
from model.mlp import SwiGLU
from model.native.packing import PANEL, Kind, Matrix, Packer
from model.paged import PagedCache, Pass
from model.positions import sinusoidal_table

_KINDS: dict[Kind, int] = {"fp32": 0, "bf16": 1, "int8": 2}


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", _Norm),
        ("qkv", Matrix),
        ("out", Matrix),
        ("mlp_norm", _Norm),
        ("up", Matrix),
        ("down", Matrix),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("head", Matrix),
        ("norm", _Norm),
        ("embed", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("layer_count", "width", "heads", "kv_heads", "head_width", "value_width")),
        ("hidden", ctypes.c_int),
        ("context", ctypes.c_int),
        ("eps", ctypes.c_float),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "slots", "tables", "keys", "values")),
        *((name, ctypes.c_int) for name in ("tokens", "table_width", "pages")),
    )


class NativeDecoder:
    """See `Decoder`. Its memory goes with the object."""

    def __init__(self, library: ctypes.CDLL, model: GPT, *, threads: int, most_tokens: int, int8: bool = False) -> None:
        """Packs the weights, which are fp32 or bf16, into memory of its own.

        Args:
            library: of `model.native.build`.
            threads: that compute, the caller's among them.
            most_tokens: of one pass.
            int8: keep matrices in 8 bits, with a scale for each output.
        """
        weights = model.embed.weight
        kind: Kind = "int8" if int8 else "fp32" if weights.dtype == torch.float32 else "bf16"
        self.dtype = torch.float32 if kind == "fp32" else torch.bfloat16
        """Of the cache that it reads and writes."""
        self._config, self._most_tokens = model.config, most_tokens
        self._packer = Packer(kind)
        network = _network(model, self._packer, self.dtype)
        self._library = _declared(library)
        self._vocabulary = network.head.outputs
        self._handle = ctypes.c_void_p(library.slipway_open(ctypes.byref(network), _KINDS[kind], threads, most_tokens))

    def __del__(self) -> None:
        """End the threads."""
        if handle := getattr(self, "_handle", None):
            self._library.slipway_close(handle)

    def hidden(self, tokens: Pass, cache: PagedCache) -> Tensor:
        """See `Decoder`; D is rounded up to 32 with zeros."""
        count = len(tokens.ids_N)
        if count > self._most_tokens:
            raise ValueError(f"{count} tokens in a pass of at most {self._most_tokens}")
        if cache.keys_LAGKS.dtype != self.dtype:
            raise ValueError(f"a cache of {cache.keys_LAGKS.dtype} for a decoder of {self.dtype}")
        x_ND = torch.empty(count, -(-self._config.width // PANEL) * PANEL)
        tensors = (tokens.ids_N, tokens.positions_N, tokens.slots_N, cache.tables_RM)
        batch = _Batch(
            *(tensor.data_ptr() for tensor in (*tensors, cache.keys_LAGKS, cache.values_LAGSW)),
            count,
            cache.tables_RM.shape[1],
            cache.pages,
        )
        self._library.slipway_hidden(self._handle, ctypes.byref(batch), x_ND.data_ptr())
        return x_ND

    def logits(self, x_ND: Tensor) -> Tensor:
        """See `Decoder`."""
        x_ND = x_ND.contiguous()
        logits_NV = torch.empty(len(x_ND), self._vocabulary)
        self._library.slipway_logits(self._handle, x_ND.data_ptr(), len(x_ND), logits_NV.data_ptr())
        return logits_NV[:, : self._config.vocab_size]

    def best(self, logits_NV: Tensor, allowed_size: int) -> tuple[Tensor, Tensor]:
        """See `Decoder`."""
        if logits_NV.stride(1) != 1:
            logits_NV = logits_NV.contiguous()
        rows = len(logits_NV)
        ids_N, values_N = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
        self._library.slipway_best(
            self._handle,
            logits_NV.data_ptr(),
            rows,
            logits_NV.stride(0),
            allowed_size,
            ids_N.data_ptr(),
            values_N.data_ptr(),
        )
        return ids_N, values_N


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.slipway_open.argtypes = [pointer, number, number, number]
    library.slipway_open.restype = pointer
    signatures: dict[str, list[Any]] = {
        "slipway_close": [pointer],
        "slipway_hidden": [pointer, pointer, pointer],
        "slipway_logits": [pointer, pointer, number, pointer],
        "slipway_best": [pointer, pointer, number, ctypes.c_long, number, pointer, pointer],
    }
    for name, arguments in signatures.items():
        function: Any = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def _network(model: GPT, packer: Packer, dtype: torch.dtype) -> _Network:
    config = model.config
    layers = (_Layer * config.layers)(*(_layer(cast(Block, block), packer) for block in model.blocks))
    network = _Network(
        layers=ctypes.addressof(layers),
        head=packer.matrix(model.projection_weight_VD),
        norm=_norm(model.norm, packer.row),
        embed=packer.address(model.embed.weight.detach().to(dtype).contiguous()),
        layer_count=config.layers,
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_width=config.head_width,
        value_width=-(-config.head_width // 16) * 16,
        hidden=config.hidden,
        context=config.context,
        eps=config.norm_eps,
    )
    network.keep = layers  # until slipway_open has copied them
    _place(network, model, packer)
    return network


def _place(network: _Network, model: GPT, packer: Packer) -> None:
    """What tells the positions apart."""
    config, cpu = model.config, torch.device("cpu")
    if model.position is None:
        tables = rotary_tables(config.context, config.head_width, theta=config.rope_theta, device=cpu)
        network.cosines, network.sines = (packer.address(table.contiguous()) for table in tables)
    else:
        network.positions = packer.address(_positions(config, model.position.table).float().contiguous())


def _positions(config: ModelConfig, learned: nn.Embedding | None) -> Tensor:
    if learned is not None:
        return learned.weight.detach()
    table_SD: Tensor = sinusoidal_table(config.context, config.width, device=torch.device("cpu"))
    return table_SD


def _layer(block: Block, packer: Packer) -> _Layer:
    attention, mlp = block.attention, block.mlp
    q_k_v = (attention.q, attention.k, attention.v)
    biases = None if attention.q.bias is None else torch.cat([project.bias for project in q_k_v])
    if isinstance(mlp, SwiGLU):
        up = packer.interleaved(mlp.gate.weight, mlp.up.weight)
    else:
        up = packer.matrix(mlp.up.weight, mlp.up.bias)
    return _Layer(
        _norm(block.attention_norm, packer.row),
        packer.matrix(torch.cat([project.weight for project in q_k_v]), biases),
        packer.matrix(attention.out.weight, attention.out.bias),
        _norm(block.mlp_norm, packer.row),
        up,
        packer.matrix(mlp.down.weight, mlp.down.bias),
    )


def _norm(norm: nn.Module, row: Callable[[Tensor], int]) -> _Norm:
    bias = getattr(norm, "bias", None)
    return _Norm(row(norm.weight), None if bias is None else row(bias))  # type: ignore[arg-type]
