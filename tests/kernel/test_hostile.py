"""`xkv check --hostile` on whatever device there is, and shown to find what is planted."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from checking import results
from conftest import GPUS, INTERPRETED

from xkv import dispatch, ops
from xkv.__main__ import main
from xkv.cli.check import hostile, naive
from xkv.cli.check.engines import SUMS, EngineSetting
from xkv.cli.check.kinds import INDICES, METADATA, SGLANG, STREAMS, VLLM, Kind, kinds
from xkv.cli.check.setting import VECTORS, Setting
from xkv.cli.check.trial import MismatchError
from xkv.launch import compile
from xkv.params import CSR, SLOTS, TABLE
from xkv.status import Reason

ROOT = Path(__file__).resolve().parents[2]
I32, I64 = torch.int32, torch.int64
KINDS = kinds(("hip" if torch.version.hip else "cuda") if GPUS else "cpu")
SEED = int(os.environ.get("XKV_SEED", "0"))
# XKV_HOSTILE=N: at least so many cases, spread over the kinds
CASES = int(os.environ.get("XKV_HOSTILE", "20000" if GPUS else "500" if INTERPRETED else "3000"))

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def run(kind: Kind, cases: int, device: str) -> None:
    each = -(-cases // len(KINDS)) * (4 if kind.sums is not None else 1)  # sums that are given take part, too
    for what, check in hostile.checks(kind, each, SEED, device, INTERPRETED):
        try:
            check()
        except MismatchError as error:
            pytest.fail(f"{what}: {error}", pytrace=False)


@every_kind
def test_hostile(kind: Kind, device: str) -> None:
    run(kind, CASES, device)


@pytest.mark.gpu
@pytest.mark.slow
@every_kind
def test_hostile_in_small_blocks(kind: Kind, device: str) -> None:
    with hostile.small_blocks():
        run(kind, CASES // 4, device)


# What is tried


@pytest.mark.repo
def test_every_op_backend_and_form_is_tried() -> None:
    for vendor in ("cuda", "hip", "cpu"):
        found = kinds(vendor)
        assert len(set(found)) == len(found)
        assert {kind.group for kind in found} - set(dispatch.specs_of(vendor)) == {
            "build_page_table", "build_kv_indices", "build_slot_mapping", SGLANG, VLLM,
        }  # fmt: skip
        given = {(kind.call, kind.sums) for kind in found if kind.sums is not None}
        assert given == {
            (METADATA, torch.int32), *((call, ids) for call in (STREAMS, INDICES) for ids in (I32, I64)),
        }  # fmt: skip
        for name in dispatch.specs_of(vendor):
            mine = [kind for kind in found if kind.group == name]
            assert {kind.sign for kind in mine} == {-1, 0, 1}
            has = frozenset().union(*(kind.has for kind in mine))
            assert has >= {*VECTORS, "window", "window_map", "page_map", "unit"}


def settings() -> list[Setting]:
    """A few of each kind; more of slots, of which there are few kinds."""
    counts = {SLOTS: 30}
    return [
        hostile.setting_of(kind, 0, n, "cpu", False)
        for kind in kinds("cpu")
        for n in range(counts.get(kind.form, 5))
    ]


@pytest.mark.repo
def test_every_violation_comes_first_in_some_case() -> None:
    """All but OVERFLOW, which takes lengths that no small source has: tests/kernel/test_sizes.py."""
    first: dict[int, Counter[Reason | None]] = {TABLE: Counter(), CSR: Counter(), SLOTS: Counter()}
    for setting in settings():
        for case in range(4):
            hostile.fill(setting, random.Random(f"{setting} {case}"))
            word = naive.build(setting.build)[1]
            first[setting.kind.form][None if word is None else Reason(word % 256)] += 1
    common = {None, *Reason} - {Reason.OVERFLOW}
    assert set(first[TABLE]) == set(first[CSR]) == common
    assert set(first[SLOTS]) == common - {Reason.BAD_START, Reason.UNALIGNED_START}


@pytest.mark.repo
def test_every_hostile_value_comes_up() -> None:
    seen: dict[str, set[str]] = {}
    for setting in settings():
        host, spots = setting.memory.host, {"beyond": setting.tokens, "far beyond": 3 * setting.tokens}
        for case in range(4):
            hostile.fill(setting, random.Random(f"{setting} {case}"))
            given = {value for value in setting.arguments.values() if isinstance(value, str)}
            for name, tensor in host.items():
                if name not in given and name != "req_to_token":
                    continue
                kinds_of = seen.setdefault(name, set())
                values = tensor.flatten().tolist()
                top = setting.rows if name == "req_pool_indices" else 0
                kinds_of |= {spot for spot, least in spots.items() if any(v > (top or least) for v in values)}
                kinds_of |= {"negative"} if min(values, default=0) < 0 else set()
                kinds_of |= {"zero"} if 0 in values else set()
                kinds_of |= {"near 2**31"} if any(abs(v - 2**31) < 9 for v in values) else set()
                kinds_of |= {"past 2**32"} if any(abs(v) > 2**32 for v in values) else set()
                kinds_of |= {"duplicated"} if len(set(values)) < len(values) else set()
    want = {"beyond", "far beyond", "negative", "zero", "near 2**31", "past 2**32", "duplicated"}
    for name in ("req_pool_indices", "seq_lens", *VECTORS, "req_to_token", "token_map", "page_map"):
        assert seen[name] >= want, name


@pytest.mark.repo
@pytest.mark.parametrize("call", [STREAMS, INDICES])
@pytest.mark.parametrize("dtype", [I32, I64])
def test_every_hostile_sum_comes_up(call: str, dtype: torch.dtype) -> None:
    """Where an engine says that rows begin; and what several rows claim."""
    seen: Counter[str] = Counter()
    for setting in settings():
        if (setting.kind.call, setting.kind.sums) != (call, dtype):
            continue
        assert isinstance(setting, EngineSetting)
        for case in range(32):
            hostile.fill(setting, random.Random(f"{setting} {case}"))
            room = setting.room_of_sums
            (values,) = (x.tolist() for name, x in setting.memory.host.items() if name in SUMS)
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
            seen["claimed by several"] += bool(hostile.wanted(setting)[1])
    wide = {"past 2**32", "near 2**63", "a sane low half"}
    assert {what for what, count in seen.items() if not count} == (wide if dtype is I32 else set())


def test_a_seed_decides_everything() -> None:
    def images(seed: int) -> list[list[int]]:
        found = []
        for kind in kinds("cpu")[::9]:
            setting = hostile.setting_of(kind, seed, 0, "cpu", True)
            hostile.fill(setting, random.Random(f"{setting}, case 0"))
            found.append(setting.memory.image.tolist())
        return found

    assert images(1) == images(1)
    assert all(a != b for a, b in zip(images(1), images(2), strict=True))


# What is found


def test_every_word_outside_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word before and the word behind every tensor, of those that are read too."""
    monkeypatch.setattr(compile, "interpreted", lambda: False)
    caught = 0
    for kind in kinds("cpu")[::7]:
        setting = hostile.setting_of(kind, 0, 1, "cpu", True)
        plain = setting.run
        for place in setting.memory.places.values():
            last = sum((n - 1) * s for n, s in zip(place.shape, place.stride, strict=True))
            end = place.begin + (last + 1) * place.dtype.itemsize // 4
            for word in (place.begin - 1, end if all(place.shape) else place.begin):
                setting.run = partial(spoilt, plain, setting.memory._words, word)
                with pytest.raises(MismatchError, match=rf"word {word} is "):
                    hostile.check(setting, 0)
                caught += 1
        setting.run = plain
        hostile.check(setting, 0)
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
    spoilt = tmp_path / "xkv" / "reference.py"
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
    names = (*ops, *dispatch.specs_of("cpu"), SGLANG, VLLM)
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


@pytest.mark.parametrize("count", ["0", "-3"])
def test_command_with_no_cases(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--hostile", count]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"xkv check: --hostile must be at least 1, not {count}\n")
