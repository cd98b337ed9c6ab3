"""The compiled library: built once, found again, and a failure that says what failed."""

import subprocess

import pytest

from model.native import build as module
from model.native.build import BuildError, build, built, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


def test_what_was_built_is_found_without_a_compiler_running(monkeypatch):
    build()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it compiled again"))
    assert built().slipway_open
    assert build().slipway_open


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert built() is None
    with pytest.raises(BuildError, match="there is no C\\+\\+ compiler; install"):
        build()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch, tmp_path):
    fails = tmp_path / "fails"
    fails.write_text("#!/bin/sh\necho 'error: no such thing' >&2\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setenv("CXX", str(fails))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match=r"did not compile decoder\.cpp: error: no such thing"):
        build()
    assert list((tmp_path / "cache" / "slipway" / "native").iterdir()) == []


@pytest.mark.parametrize("changed", ["_processor", "_version"])
def test_another_processor_or_compiler_has_another_library(monkeypatch, changed):
    before = module._path.__wrapped__(compiler())
    monkeypatch.setattr(module, changed, lambda *_: "another")
    assert module._path.__wrapped__(compiler()) != before
