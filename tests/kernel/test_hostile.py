"""`xkv check --hostile` on whatever device there is, and shown to find what is planted."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import results
from conftest import GPUS, INTERPRETED

from xkv import dispatch, ops
from xkv.__main__ import main
from xkv.cli.check import hostile, oracle
from xkv.cli.check.case import VECTORS, Case, MismatchError
from xkv.cli.check.engine_rows import (
    INDICES,
    LENGTHS,
    METADATA,
    RAGGED,
    RANK_STREAMS,
    SGLANG,
    STREAMS,
    VLLM,
)  # fmt: skip
from xkv.cli.check.families import Family, families
from xkv.cli.check.values import INDPTR
from xkv.launch import compile
from xkv.params import CSR, SLOTS, TABLE
from xkv.status import Reason

ROOT = Path(__file__).resolve().parents[2]
I32, I64 = torch.int32, torch.int64
FAMILIES = families(("hip" if torch.version.hip else "cuda") if GPUS else "cpu")
SEED = int(os.environ.get("XKV_SEED", "0"))
# XKV_HOSTILE=N: at least so many cases, spread over the families
CASES = int(os.environ.get("XKV_HOSTILE", "20000" if GPUS else "500" if INTERPRETED else "3000"))

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def run(family: Family, cases: int, device: str) -> None:
    each = -(-cases // len(FAMILIES)) * (
        4 if family.indptr is not None else 1
    )  # sums that are passed take part, too
    for what, check in hostile.checks(family, each, SEED, device, INTERPRETED):
        try:
            check()
        except MismatchError as error:
            pytest.fail(f"{what}: {error}", pytrace=False)


@every_family
def test_hostile(family: Family, device: str) -> None:
    run(family, CASES, device)


@pytest.mark.kernel
@pytest.mark.slow
@every_family
def test_hostile_in_small_blocks(family: Family, device: str) -> None:
    with hostile.small_blocks():
        run(family, CASES // 4, device)


# What is tried


@pytest.mark.repo
def test_every_op_backend_and_form_is_tried() -> None:
    for vendor in ("cuda", "hip", "cpu"):
        found = families(vendor)
        assert len(set(found)) == len(found)
        assert {family.group for family in found} - set(dispatch.specs_of(vendor)) == {
            "build_page_table", "build_kv_indices", "build_slot_mapping", SGLANG, VLLM, LENGTHS,
        }  # fmt: skip
        passed = {(family.function, family.indptr) for family in found if family.indptr is not None}
        assert passed == {
            (METADATA, torch.int32),
            *((call, ids) for call in (STREAMS, INDICES, RANK_STREAMS, RAGGED) for ids in (I32, I64)),
        }  # fmt: skip
        for name in dispatch.specs_of(vendor):
            mine = [family for family in found if family.group == name]
            assert {family.query_sign for family in mine} == {-1, 0, 1}
            options = frozenset().union(*(family.options for family in mine))
            assert options >= {*VECTORS, "window", "window_map", "page_map", "unit"}
            assert ("extends" in options) == all(family.form == TABLE for family in mine)


def drawn() -> Iterator[Case]:
    """A few of each family, each with four sets of values; more of slots, of which there are few families."""
    for family in families("cpu"):
        for n in range(30 if family.form == SLOTS else 5):
            case = hostile.draw(family, 0, n, "cpu", False)
            for number in range(4):
                hostile.fill(case, number)
                yield case


@pytest.mark.repo
def test_every_violation_comes_first_in_some_case() -> None:
    """All but OVERFLOW, which takes lengths that no small source has: tests/kernel/test_sizes.py."""
    first: dict[int, Counter[Reason | None]] = {TABLE: Counter(), CSR: Counter(), SLOTS: Counter()}
    for case in drawn():
        words = [oracle.expected(build)[1] for build in case.builds]
        word = min((word for word in words if word is not None), default=None)
        first[case.family.form][None if word is None else Reason(word % 256)] += 1
    common = {None, *Reason} - {Reason.OVERFLOW}
    assert set(first[TABLE]) == set(first[CSR]) == common
    assert set(first[SLOTS]) == common - {Reason.BAD_START, Reason.UNALIGNED_START}


@pytest.mark.repo
def test_every_hostile_value_comes_up() -> None:
    seen: dict[str, set[str]] = {}
    for case in drawn():
        tokens, inputs = (
            case.sizes.tokens,
            {value for value in case.arguments.values() if isinstance(value, str)},
        )
        for name in inputs & case.memory.host.keys() | {"req_to_token"}:
            values = case.memory.host[name].flatten().tolist()
            top = case.sizes.rows if name == "req_pool_indices" else 0
            came = {
                "beyond": any(v > (top or tokens) for v in values),
                "far beyond": any(v > (top or 3 * tokens) for v in values),
                "negative": any(-(2**31) <= v < 0 for v in values),
                "zero": 0 in values,
                "near 2**31": any(abs(v - 2**31) < 9 for v in values),
                "past 2**32": any(abs(v) > 2**32 for v in values),
                "duplicated": len(set(values)) < len(values),
            }
            seen.setdefault(name, set()).update(what for what, yes in came.items() if yes)
    for name in ("req_pool_indices", "seq_lens", *VECTORS, "req_to_token", "token_map", "page_map"):
        assert seen[name] == {*came}, name


@pytest.mark.repo
@pytest.mark.parametrize("function", [STREAMS, INDICES, RANK_STREAMS, RAGGED])
@pytest.mark.parametrize("dtype", [I32, I64])
def test_every_hostile_sum_comes_up(function: str, dtype: torch.dtype) -> None:
    """Where an engine says that rows begin; and what several rows claim."""
    seen: Counter[str] = Counter()
    for family in families("cpu"):
        if (family.function, family.indptr) != (function, dtype):
            continue
        for n, number in itertools.product(range(5), range(32)):
            if number == 0:
                case = hostile.draw(family, 0, n, "cpu", False)
            hostile.fill(case, number)
            room = case.sizes.stream
            (values,) = (x.tolist() for name, x in case.memory.host.items() if name in INDPTR)
            seen["sane"] += bool(values) and values == sorted(values) and 0 <= values[0] <= values[-1] <= room
            seen["falling"] += values != sorted(values)
            seen["negative"] += any(v < 0 for v in values)
            seen["the room itself"] += room in values
            seen["just past the room"] += room + 1 in values
            seen["far past the room"] += any(v > 3 * room for v in values)
            seen["near 2**31"] += any(abs(abs(v) - 2**31) < 9 for v in values)
            seen["past 2**32"] += any(abs(v) > 2**32 for v in values)
            seen["near 2**63"] += any(abs(v) >= 2**63 - 9 for v in values)
            seen["a sane low half"] += any(abs(v) > 2**32 and 0 <= v % 2**32 <= room for v in values)
            seen["claimed by several"] += any(case.expect().values())
    wide = {"past 2**32", "near 2**63", "a sane low half"}
    assert {what for what, count in seen.items() if not count} == (wide if dtype is I32 else set())


def test_a_seed_decides_everything() -> None:
    def images(seed: int) -> list[list[int]]:
        found = []
        for family in families("cpu")[::9]:
            case = hostile.draw(family, seed, 0, "cpu", True)
            hostile.fill(case, 0)
            found.append(case.memory.image.tolist())
        return found

    assert images(1) == images(1)
    assert all(a != b for a, b in zip(images(1), images(2), strict=True))


# What is found


def test_every_word_outside_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word before and the word behind every tensor, of those that are read too."""
    monkeypatch.setattr(compile, "interpreted", lambda: False)
    caught = 0
    for family in families("cpu")[::7]:
        case = hostile.draw(family, 0, 1, "cpu", True)
        plain = case.run
        for place in case.memory.places.values():
            last = sum((n - 1) * s for n, s in zip(place.shape, place.stride, strict=True))
            end = place.begin + (last + 1) * place.dtype.itemsize // 4
            for word in (place.begin - 1, end if all(place.shape) else place.begin):
                case.run = partial(spoilt, plain, case.memory._words, word)
                with pytest.raises(MismatchError, match=rf"\(word {word}\): got "):
                    hostile.check(case, 0)
                caught += 1
        case.run = plain
        hostile.check(case, 0)
    assert caught > 100


def spoilt(call: Callable[[], object], words: torch.Tensor, word: int) -> None:
    call()
    words[word] += 1


FAULTS = {
    "a length that wraps": (
        "return x.to(torch.int64).clamp(", "return x.to(torch.int32).to(torch.int64).clamp("
    ),
    "an entry too many": (".clamp(0, build.max_tokens)", ".clamp(0, build.max_tokens + 1)"),
}  # fmt: skip


@pytest.mark.repo
@pytest.mark.parametrize("fault", FAULTS)
def test_the_program_that_is_printed_shows_the_fault(fault: str, tmp_path: Path) -> None:
    """Run where the fault is it fails, run where it is not it passes."""
    shutil.copytree(ROOT / "xkv", tmp_path / "xkv", ignore=shutil.ignore_patterns("__pycache__"))
    spoilt = tmp_path / "xkv" / "reference" / "rows.py"
    right, wrong = FAULTS[fault]
    assert spoilt.read_text().count(right) == 1
    spoilt.write_text(spoilt.read_text().replace(right, wrong))

    def python(path: Path, *command: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(path), "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
        env["PYTHONWARNINGS"] = "error"
        command = (sys.executable, *command)
        return subprocess.run(command, cwd=path, env=env, capture_output=True, text=True, check=False)

    done = python(tmp_path, "-m", "xkv", "check", "--device", "cpu", "--hostile", "900")
    assert done.returncode == 1, done.stdout + done.stderr
    found = re.findall(r"To see it again, run:\n\n(.*?\nassert not wrong, [^\n]*\n)", done.stdout, re.DOTALL)
    assert found
    case = tmp_path / "alone" / "case.py"
    case.parent.mkdir()
    case.write_text(found[0])
    assert python(tmp_path, str(case)).returncode == 1
    again = python(ROOT, str(case))
    assert again.returncode == 0, again.stderr


# The command


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "interpreted", lambda: False)


@pytest.mark.usefixtures("by_reference")
def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--hostile", "200", "--device", "cpu", "--seed", "7"]) == 0
    found = results(capsys.readouterr().out)
    ops = ("build_page_table", "build_kv_indices", "build_slot_mapping")
    sparse = ("translate_positions", "expand_queries")
    names = (*ops, *dispatch.specs_of("cpu"), SGLANG, VLLM, LENGTHS, *sparse)
    assert list(found) == [*(f"hostile {name}" for name in names), "total"]
    assert found["total"][0] >= 200
    assert {result for _, result in found.values()} == {"pass"}


@pytest.mark.usefixtures("by_reference")
def test_command_on_an_op_that_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**call: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(ops, "build_slot_mapping", broken)
    assert main(["check", "--hostile", "100", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert {k for k, v in results(out).items() if v[1] == "FAIL"} == {"hostile build_slot_mapping", "total"}
    assert "RuntimeError: no such kernel\nTo see it again, run:\n\n# xkv" in out


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("op", ["translate_positions", "expand_queries"])
def test_command_on_a_wrong_entry(
    op: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = getattr(ops, op)

    def broken(*args: Any, **more: Any) -> Any:
        found = honest(*args, **more)
        for x in [found] if isinstance(found, torch.Tensor) else found:
            if x is not None and x.numel():
                x[(0,) * x.dim()] += 1
        return found

    monkeypatch.setattr(ops, op, broken)
    assert main(["check", "--hostile", "100", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert {k for k, v in results(out).items() if v[1] == "FAIL"} == {f"hostile {op}", "total"}
    assert "Traceback" not in out


@pytest.mark.parametrize("count", ["0", "-3"])
def test_command_with_no_cases(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--hostile", count]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"xkv check: --hostile must be at least 1, not {count}\n")
