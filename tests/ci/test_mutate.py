"""ci/mutate.py: every fault can be planted, and one that nothing sees is said to have survived."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "ci"))
import mutate  # noqa: E402
from mutations import MUTATIONS, Mutation  # noqa: E402

pytestmark = pytest.mark.repo


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_each_can_be_planted(mutation: Mutation, tmp_path: Path) -> None:
    """Its text is in the kernel exactly once, and it is Python afterwards."""
    copy = tmp_path / mutation.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutation.file).read_text())
    mutate.plant(mutation, tmp_path)
    compile(copy.read_text(), mutation.file, "exec")
    assert mutation.why
    assert mutation.first
    assert mutation.tier in mutate.TIERS


def test_no_two_have_one_name() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) > 12


TOY = "def double(x):\n    return x + x\n"
TEST = """
import pytest, toy

def test_double():
    assert toy.double(3) == 6

def test_crash():
    toy.double(1) == 2 or __import__("os").abort()
"""
FAULTS = {
    "seen": ("x + x", "x * x", "test_double"),
    "equivalent": ("x + x", "2 * x", ""),
    "a crash": ("x + x", "x + x if x > 1 else 3", "(signal 6)"),
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one function and its tests."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setattr(mutate, "TIERS", {"interpreter": [["test_toy.py"]]})
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    return tmp_path


def fault(name: str, first: str = "double") -> Mutation:
    old, new, _ = FAULTS[name]
    return Mutation(name, "toy.py", old, new, "", first)


@pytest.mark.parametrize("name", ["seen", "equivalent", "a crash"])
def test_what_sees_a_fault(name: str, toy: Path) -> None:
    result = mutate.attempt(fault(name), toy)
    assert result.seen_by == FAULTS[name][2]
    assert (toy / "toy.py").read_text() == TOY, "planted in the checkout itself"


def test_a_survivor_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(mutate, "attempt", lambda m, try_=mutate.attempt: try_(m, toy))
    faults = [fault("seen"), fault("equivalent")]
    assert mutate.main([], faults) == 1
    out = capsys.readouterr().out
    assert "SURVIVED" in out
    assert out.endswith("2 faults, 1 seen, 1 survived: equivalent\n")
    assert mutate.main(["--only", "seen", "--jobs", "2"], faults) == 0
    assert capsys.readouterr().out.endswith("1 faults, 1 seen, 0 survived\n")


ALWAYS = """
def test_a_always():
    raise ValueError
"""
CRASH = """
def test_a_crash():
    __import__("os").abort()
"""


@pytest.mark.parametrize(
    ("name", "test", "shown"),
    [
        ("seen", ALWAYS, "test_a_always"), ("equivalent", CRASH, "(signal 6)"),
        ("a crash", ALWAYS, "test_a_always"),
    ],
)  # fmt: skip
def test_what_fails_without_the_fault_has_not_seen_it(name: str, test: str, shown: str, toy: Path) -> None:
    """It is named, and what sees the fault is looked for among the others."""
    (toy / "test_toy.py").write_text(test + TEST)
    result = mutate.attempt(fault(name, "a_ or double"), toy)
    assert result.seen_by == FAULTS[name][2]
    assert result.flaky == (shown,)


def test_a_run_that_is_ended_from_outside_has_seen_nothing(toy: Path) -> None:
    (toy / "test_toy.py").write_text(
        "def test_double():\n    __import__('os').kill(__import__('os').getpid(), 15)\n"
    )
    with pytest.raises(mutate.MutationError, match="exit status -15"):
        mutate.attempt(fault("seen"), toy)


def test_nothing_but_a_flaky_test(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (toy / "test_toy.py").write_text(ALWAYS)
    monkeypatch.setattr(mutate, "attempt", lambda m, try_=mutate.attempt: try_(m, toy))
    assert mutate.main([], [fault("seen", "always")]) == 1
    assert capsys.readouterr().out.endswith("flaky: test_a_always\n1 faults, 0 seen, 1 survived: seen\n")


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize("again", [None, mutate.Failure("t", "t", True)])
def test_a_test_that_ran_into_the_limit(limit: bool, again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has seen a fault only if it is far from the limit without it: a slow machine makes none seen."""
    asked: list[Any] = []
    monkeypatch.setattr(mutate, "run", lambda *call: asked.append(call) or again)
    assert mutate.sees(mutate.Failure("f.py::test_x", "test_x", limit), ROOT, "compile") is (again is None)
    most = mutate._LIMIT // 10 if limit else mutate._LIMIT
    assert asked == [(ROOT, "compile", ["f.py::test_x"], most)]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"old": "x - x"}, "seen: its text is 0 times in toy.py, not once"),
        ({"old": "x"}, "seen: its text is 3 times in toy.py, not once"),
        ({"new": "x + x"}, "seen: nothing is changed"),
        ({"first": "no_such_test"}, "exit status 5"),
        ({"new": "x +"}, "exit status 2"),
    ],
)
def test_what_cannot_be_tried_is_an_error(
    changed: dict[str, str], says: str, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Not a fault that was seen: a test that is not there fails, too."""
    monkeypatch.setattr(mutate, "attempt", lambda m, try_=mutate.attempt: try_(m, toy))
    assert mutate.main([], [fault("seen")._replace(**changed)]) == 2
    assert says in capsys.readouterr().err
