"""A user's class: found by its name, made from the job's settings, loaded with weights that fit it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_fixtures import job
from torch import nn

from orchestrator.errors import JobError, StoreError
from orchestrator.export.module import describe, load_weights, make_module, say_if_source_changed
from orchestrator.job_model import Model

OWN = """\
import torch

class Net(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        if width < 1:
            raise ValueError("width must be 1 at least")
        self.first = torch.nn.Linear(width, width)
        self.again = torch.nn.Linear(width, width)
        self.again.weight = self.first.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

class Plain:
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the file own_nets.py in it."""
    (tmp_path / "own_nets.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "own_broken.py").write_text("import no_such_library\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own_nets", "own_broken"):
        sys.modules.pop(name, None)


def own(spelled: str, **settings: Any) -> Model:
    return Model.model_validate({"kind": "custom", "class": spelled, "settings": settings})


def test_it_is_found_below_the_working_folder_and_drawn_from_the_seed(folder: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (make_module(own("own_nets:Net", width=3), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.first.weight, same.first.weight)
    assert not torch.equal(first.first.weight, other.first.weight)
    assert first.first.weight.shape == (3, 3)


@pytest.mark.parametrize(
    ("spelled", "settings", "told"),
    [
        ("own_missing:Net", {}, "cannot be imported: ModuleNotFoundError: No module named 'own_missing'"),
        ("own_broken:Net", {}, "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"),
        ("own_nets:Nett", {}, "cannot be imported: AttributeError"),
        ("own_nets:Net", {"depth": 2}, "cannot be made with model.settings {'depth': 2}: TypeError"),
        ("own_nets:Net", {"width": 0}, "cannot be made with model.settings {'width': 0}: ValueError: width must be"),
        ("own_nets:Plain", {}, "is no torch.nn.Module"),
        ("subprocess:Popen", {"args": ["touch", "called"]}, "is no torch.nn.Module"),
        ("os:mkdir", {"path": "called"}, "is no torch.nn.Module"),
    ],
)
def test_what_makes_no_network_is_named(folder: Path, spelled: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as e:
        make_module(own(spelled, **settings), seed=0)
    assert told in e.value.message
    assert spelled in e.value.message
    assert e.value.fix
    assert not (folder / "called").exists()


def test_weights_of_another_shape_are_refused_by_name(folder: Path) -> None:
    module = make_module(own("own_nets:Net"), seed=0)
    tensors = dict(module.state_dict())
    del tensors["again.weight"]  # the same parameter as first.weight, which a checkpoint holds once
    other = make_module(own("own_nets:Net"), seed=1)
    assert torch.equal(load_weights(other, tensors, origin=folder).again.weight, module.first.weight)
    assert not other.training
    for wrong in ({"first.bias": torch.zeros(3)}, {"third": torch.zeros(1)}):
        with pytest.raises(StoreError, match=next(iter(wrong))):
            load_weights(other, {**tensors, **wrong}, origin=folder)
    with pytest.raises(StoreError, match="seen"):
        load_weights(other, {k: t for k, t in tensors.items() if k != "seen"}, origin=folder)


def test_changed_code_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = own("own_nets:Net")
    before = describe(model, make_module(model, seed=0))
    say_if_source_changed(before, before, since="step 5")
    assert capsys.readouterr().err == ""
    (folder / "own_nets.py").write_text(OWN + "\n\nNEW = 1\n", encoding="utf-8")
    say_if_source_changed(before, describe(model, make_module(model, seed=0)), since="step 5")
    assert "the source of own_nets:Net has changed since step 5" in capsys.readouterr().err


def test_a_class_without_a_file_has_no_source() -> None:
    made_up = type("MadeUp", (nn.Module,), {"__module__": "nowhere"})
    assert describe(job().model, made_up())["source_sha256"] is None
