"""`python -m xkv check`: passes here, and fails, with the group's name, on whatever is planted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking import bump, failed, outputs, plant, results
from conftest import INTERPRETED

import xkv
from xkv.__main__ import main
from xkv.cli.check import selftest
from xkv.launch import compile

QUICK = ("check", "--device", "cpu", "--quick")
OPS = ("build_page_table", "build_kv_indices", "build_slot_mapping")
ALL = list(selftest.GROUPS)


@pytest.fixture(autouse=True)
def _by_reference(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch reference; under TRITON_INTERPRET=1 only what is for the interpreter."""
    if INTERPRETED and request.node.get_closest_marker("interpret") is None:
        pytest.skip("the plain tier has it, through the reference")
    monkeypatch.setattr(compile, "interpreted", lambda: False)


@pytest.mark.parametrize("more", [(), ("--quick",)])
def test_passes_on_the_cpu(more: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cpu", *more]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"xkv {xkv.__version__} on cpu: the torch reference\n")
    found = results(out)
    assert list(found) == [*ALL, "total"]
    assert found.pop("graph replays") == (0, "no GPU")
    total, result = found.pop("total")
    assert result == "pass"
    assert {result for _, result in found.values()} == {"pass"}
    assert min(cases for cases, _ in found.values()) > 0
    assert total == sum(cases for cases, _ in found.values())


def test_every_size_and_dtype_is_tried() -> None:
    bench = selftest.Bench("cpu", quick=False, interpreted=False)
    sizes = [1 << k for k in range(11)]
    for title in ("page tables", "kv indices"):
        text = "\n".join(what for what, _ in selftest.GROUPS[title](bench))
        for page_size in sizes:
            for unit in (1, 16, 64):
                for ids in ("int32", "int64"):
                    said = f": {page_size} of {unit}, {ids} -> int\\d+, "
                    assert re.search(said, text), said
        assert len(set(re.findall(r"int\d+ -> int\d+", text))) == 4
    slots = "\n".join(what for what, _ in selftest.GROUPS["slot mappings"](bench))
    assert set(map(int, re.findall(r"map_page_size=(\d+)", slots))) == set(sizes)
    assert len(set(re.findall(r"1 of \d+, int\d+ -> int\d+", slots))) == 12


@pytest.mark.gpu
def test_passes_on_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--quick"]) == 0
    found = results(capsys.readouterr().out)
    assert {result for _, result in found.values()} == {"pass"}
    assert found["graph replays"][0] > 0


@pytest.mark.interpret
def test_passes_in_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compile, "interpreted", lambda: True)
    monkeypatch.setattr(selftest, "GROUPS", dict([*selftest.GROUPS.items()][:2]))
    assert main(["check", "--quick"]) == 0
    assert "on cpu: the kernel in Triton's interpreter\n" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cuda"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("xkv check: device 'cuda")
    assert err.count("\n") == 1


def wrong_first(build: Callable[..., Any], call: dict[str, Any]) -> Any:
    result = build(**call)
    written = outputs(result)[-1 if len(outputs(result)) == 1 else 1]
    if int(call["seq_lens"].sum()):
        bump(written, 0)
    return result


def past_the_end(which: int) -> Callable[..., Any]:
    """Writes one element past the live ones of an output, or where nothing belongs."""

    def spoil(build: Callable[..., Any], call: dict[str, Any]) -> Any:
        result = build(**call)
        if call.get("out") is not None:
            x = outputs(result)[which]
            bump(x, x.shape[0] * x.stride(0))
        return result

    return spoil


@pytest.mark.parametrize("op", OPS)
def test_wrong_entry(op: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plant(monkeypatch, op, wrong_first)
    assert main([*QUICK]) == 1
    out = capsys.readouterr().out
    own = {"build_page_table": "page tables", "build_kv_indices": "kv indices"}.get(op, "slot mappings")
    others = {"page tables", "kv indices", "slot mappings"} - {own}
    assert failed(out) == set(ALL) - others - {"graph replays"}
    assert results(out)["total"][1] == "FAIL"
    # what differed: where, what was there, what belongs there, in which case
    assert re.search(rf"^  {op}: \d+ of \d+, int\d+ -> int\d+, status, .*batch \d+:$", out, re.MULTILINE)
    (got, want) = re.search(r"^    out\[.*\] \(word \d+\): got (-?\d+), want (-?\d+)", out, re.M).groups()
    assert int(got) == int(want) + 1
    assert re.search(r"^  and \d+ more$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("op", "which", "name"),
    [
        ("build_page_table", 0, "out"),
        ("build_slot_mapping", 0, "out"),
        ("build_kv_indices", 0, "kv_indptr"),
        ("build_kv_indices", 1, "out"),
        ("build_kv_indices", 2, "kv_last_page_len"),
    ],
)
def test_write_out_of_bounds(
    op: str, which: int, name: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plant(monkeypatch, op, past_the_end(which))
    assert main([*QUICK]) == 1
    out = capsys.readouterr().out
    assert re.search(rf"^    {name}\[.*\(word \d+\): got -\d+, want what was there before", out, re.M)


def without(*names: str) -> Callable[..., Any]:
    """An op that does not look at these arguments."""
    return lambda build, call: build(**{k: v for k, v in call.items() if k not in names})


IGNORED = [
    (("kv_start",), {"starts and windows", "planted violations"}),
    (("seq_lens_delta",), {"starts and windows"}),
    (("token_map",), {"maps", "planted violations"}),
    (("page_map", "map_page_size"), {"maps", "planted violations"}),
    (("pad_value", "pad_to_multiple_of"), {"tails and missing ids"}),
    (("pad_to_multiple_of",), {"tails and missing ids"}),
    (("missing_id",), {"maps", "tails and missing ids"}),
    (("status",), {"planted violations"}),
]


@pytest.mark.parametrize(
    ("op", "names", "groups"),
    [
        pytest.param(op, *ignored, id=f"{op}-{ignored[0][0]}")
        for op in OPS
        for ignored in IGNORED
        if (op, ignored[0]) != ("build_slot_mapping", ("kv_start",))  # it has none
    ],
)
def test_ignored_argument(
    op: str, names: tuple[str, ...], groups: set[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plant(monkeypatch, op, without(*names))
    assert main([*QUICK]) == 1
    assert failed(capsys.readouterr().out) - {"slot mappings", "shards"} == groups


def test_violation_that_never_was(monkeypatch, capsys) -> None:
    monkeypatch.setattr(xkv.Status, "read", lambda self: xkv.Violation(0, xkv.Reason.TRUNCATED))
    assert main([*QUICK]) == 1
    assert "status: got row 0: TRUNCATED: " in capsys.readouterr().out


@pytest.mark.parametrize("op", OPS)
def test_only_long_rows_wrong(op: str, monkeypatch, capsys) -> None:
    """What only a row of many blocks shows is seen by one group alone."""

    def spoil(build: Callable[..., Any], call: dict[str, Any]) -> Any:
        result = build(**call)
        if len(call["seq_lens"]) and 2000 < call["seq_lens"].max() < 10_000:
            bump(outputs(result)[-2 if op == "build_kv_indices" else 0], 900)
        return result

    plant(monkeypatch, op, spoil)
    assert main([*QUICK]) == 1
    assert failed(capsys.readouterr().out) == {"skewed batches"}


@pytest.mark.parametrize("op", OPS)
def test_only_new_outputs_wrong(op: str, monkeypatch, capsys) -> None:
    """An output that is allocated too small, or too large, or with a wrong value."""
    for spoil in (lambda x: x[:-1], lambda x: torch.cat([x, x[-1:]]), lambda x: x + 1):

        def spoiled(build: Callable[..., Any], call: dict[str, Any], spoil=spoil) -> Any:
            result = build(**call)
            if call.get("out") is not None:
                return result
            if op == "build_kv_indices":
                return result._replace(kv_indices=spoil(result.kv_indices))
            return spoil(result)

        with monkeypatch.context() as patch:
            plant(patch, op, spoiled)
            assert main([*QUICK]) == 1
        assert failed(capsys.readouterr().out) == {"new outputs"}


def test_an_op_that_raises(monkeypatch, capsys) -> None:
    def broken(build: Callable[..., Any], call: dict[str, Any]) -> Any:
        raise RuntimeError("no such kernel")

    plant(monkeypatch, "build_slot_mapping", broken)
    assert main([*QUICK]) == 1
    out = capsys.readouterr().out
    assert "    Traceback (most recent call last):\n" in out
    assert "    RuntimeError: no such kernel\n" in out
    assert results(out)["page tables"][1] == "pass"
    assert results(out)["slot mappings"][1] == "FAIL"


def test_an_interrupt_ends_it(monkeypatch, capsys) -> None:
    def stop(build: Callable[..., Any], call: dict[str, Any]) -> Any:
        raise KeyboardInterrupt

    plant(monkeypatch, "build_kv_indices", stop)
    assert main([*QUICK]) == 130
    out, err = capsys.readouterr()
    assert results(out)["page tables"][1] == "pass"
    assert "total" not in out
    assert err == "xkv: interrupted\n"
