"""Every public name has an example in its docstring, and it prints what the docstring says."""

from __future__ import annotations

import doctest

import pytest
import torch

import xkv


def examples(name: str) -> list[doctest.DocTest]:
    """The examples of a public name and, of a class, of its methods."""
    found = doctest.DocTestFinder().find(getattr(xkv, name), name, globs={})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", xkv.__all__)
def test_the_examples_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XKV_ARCH", raising=False)
    tests = examples(name)
    assert name in {test.name for test in tests}, f"xkv.{name} has no example in its docstring"
    for test in tests:
        said: list[str] = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        assert not result.failed, "".join(said)


def test_an_example_that_says_something_else_fails() -> None:
    test = doctest.DocTestParser().get_doctest(
        ">>> torch.ones(1)\ntensor([2.])\n", {"torch": torch}, "", None, 0
    )
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda _: None).failed == 1
