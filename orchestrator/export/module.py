"""A user's own `torch.nn.Module`: found by its name, made, loaded, called, described.

Its `forward(columns)` gets a dictionary of tensors by column ([B] or [B, size], int64 or float) and returns one with
`predictions` (floats, rows first), and with `loss`, the mean over the rows, where the columns that it is told from are
there.

B rows.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import JobError, StoreError
from orchestrator.job_model import Model
from orchestrator.store import sha256_file
from orchestrator.track.progress import say

LOSS = "loss"
PREDICTIONS = "predictions"
_SOURCE = "source_sha256"


def make_module(model: Model, *, seed: int) -> nn.Module:
    """The network that `model.class` names, with weights drawn from `seed`.

    Modules are found where Python finds them, and in the folder in which the command was started.

    Raises:
        JobError: it cannot be imported or made, or is no `torch.nn.Module`.
    """
    spelled = str(model.class_)
    module_name, _, class_name = spelled.partition(":")
    _look_below_working_folder()
    try:
        made_of = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise JobError(
            f"model.class {spelled} cannot be imported: {type(error).__name__}: {error}",
            fix="name it package.module:Class, where Python finds it: installed, or below the working folder",
        ) from error
    # Before it is called: a job or an export may name any callable, such as one that starts a process.
    if not (isinstance(made_of, type) and issubclass(made_of, nn.Module)):
        raise JobError(f"model.class {spelled} is no torch.nn.Module", fix="derive it from torch.nn.Module")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return made_of(**model.settings)
        except Exception as error:
            raise JobError(
                f"model.class {spelled} cannot be made with model.settings {model.settings}: "
                f"{type(error).__name__}: {error}",
                fix="give the keyword arguments that its __init__ takes",
            ) from error


def _look_below_working_folder() -> None:
    """As `python -m` does; for good, since a module may import others when it is called."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def describe(model: Model, module: nn.Module) -> dict[str, Any]:
    """A network of the user's own as a checkpoint has it: class, settings, SHA-256 of the file that its class is in."""
    return {"custom": model.class_, "settings": model.settings, _SOURCE: _source_sha256(module)}


def say_if_source_changed(before: Mapping[str, Any], now: Mapping[str, Any], *, since: str) -> None:
    """Tell the user where the code is not the one that `since` was made with: it may compute something else."""
    was, found = before.get(_SOURCE), now.get(_SOURCE)
    if was and found and was != found:
        say(f"the source of {now['custom']} has changed since {since}: the weights go on with the new code")


def _source_sha256(module: nn.Module) -> str | None:
    try:
        return sha256_file(Path(inspect.getfile(type(module))))
    except (OSError, TypeError):  # a class that was made up while running has no file
        return None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, origin: Path) -> nn.Module:
    """The module with these weights, ready to predict. A parameter with two names is there under its first.

    Raises:
        StoreError: a tensor is missing, is not in the module, or has another shape.
    """
    kept = module.state_dict().keys()
    own: dict[str, Tensor] = dict(module.named_parameters())
    own |= {name: buffer for name, buffer in module.named_buffers() if name in kept}
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    if wrong:
        raise StoreError(
            f"the weights of {origin} do not fit {type(module).__name__}: {', '.join(wrong[:5])}",
            fix="its code or settings have changed: put back what it was trained with, or train it again",
        )
    module.load_state_dict(dict(tensors), strict=False)
    return module.eval().requires_grad_(False)


def call_module(module: nn.Module, columns: Mapping[str, Tensor], *, spelled: str) -> dict[str, Any]:
    """What `forward` returns for rows; floats are given in the type of its weights.

    Raises:
        JobError: it asks for a column that there is not, or returns no dictionary.
    """
    wide = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    given = {name: t.to(wide) if t.is_floating_point() else t for name, t in columns.items()}
    try:
        found = module(given)
    except KeyError as error:
        asked = error.args[0] if error.args else None
        if not isinstance(asked, str) or asked in given:
            raise
        raise JobError(
            f"model.class {spelled} asks for the column {asked}; there are {', '.join(given) or 'none'}",
            fix="name it in data.columns, or ask for another; a target is there only where it is known",
        ) from error
    if not isinstance(found, dict):
        raise JobError(
            f"model.class {spelled} returned {type(found).__name__}, not a dictionary",
            fix="let forward(columns) return {'loss': ..., 'predictions': ...}",
        )
    return found


def predictions_of(module: nn.Module, columns: Mapping[str, Tensor], *, spelled: str) -> Tensor:
    """The predictions for rows: [B, ...], floats.

    Raises:
        JobError: as `call_module`; there are none, or not one for each row.
    """
    found = call_module(module, columns, spelled=spelled).get(PREDICTIONS)
    rows = len(next(iter(columns.values())))
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.dim() or len(found) != rows:
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise JobError(
            f"model.class {spelled} returned no predictions for {rows} row(s), but {what}",
            fix="let forward(columns) return {'predictions': floats, one entry a row} at all times",
        )
    return found
