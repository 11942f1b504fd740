"""ci/serve.sh inside an engine's process: switching, counting, its rounds, and the scheduler's answers."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.repo


@pytest.fixture(autouse=True)
def _serve_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    yield
    sys.path_importer_cache.pop(str(ROOT / "ci"), None)


def module(name):
    return importlib.import_module(f"serve.{name}")


def kernel_function(page_indices, count):
    """The signature of an engine's kernel."""


class Kernel:
    """Launches as a Triton kernel does, and says so."""

    fn = staticmethod(kernel_function)

    def __init__(self):
        self.launched = []

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launched.append(grid)


def launch_of(served, ours):
    def launch(grid, page_indices, count):
        if served:
            ours.append(grid)
        return served

    return launch


def replaced(book, served=True):
    """A replaced kernel as the plugin leaves it, its switch, and what is launched as ours."""
    from xkv.integrations.patching import replacing

    own, ours = Kernel(), []
    replacing.swap(own, launch_of(served, ours))
    return module("hooks")._kernel(book, "kernel", own), own, ours


class Backend:
    """What an engine has methods of."""

    def step(self):
        return "theirs"


def around(original, self, asked):
    return "ours" if asked else original(self, asked)


def instead(original):
    original(None, False)  # what it is made from may be asked
    return lambda self, asked: "ours"


def backend(name="around"):
    """What an engine has methods of."""

    class Backend:
        def step(self, asked):
            return "theirs"

    from xkv.integrations.patching import replacing

    row = replacing.Function("step", frozenset(), f"{__name__}:{name}", name != "around")
    replacing.put(Backend, "step", Backend.step, row.made(Backend.step))
    return Backend, row


def test_a_method_is_ours_or_the_engines():
    (host, row), book = backend(), module("book").Book()
    switch = module("hooks")._method(book, row, host, "step")
    for mode, says in (
        ("on", "ours"),
        ("off", "theirs"),
        ("on+", "ours"),
        ("off+", "theirs"),
        ("spoilt", "theirs"),
    ):
        switch.set(mode)
        assert host().step(True) == says
    assert book.take()["calls"] == {"step": {"served": 1}}
    switch.set("on+")
    assert host().step(False) == "theirs"
    assert book.take()["calls"] == {"step": {"handed back": 1}}


def test_what_is_called_in_a_method_s_place_without_it():
    (host, row), book = backend("instead"), module("book").Book()
    switch = module("hooks")._method(book, row, host, "step")
    switch.set("on+")
    assert host().step(True) == "ours"
    assert book.take()["calls"] == {"step": {"served": 1}}
    switch.set("off")
    assert host().step(True) == "theirs"


def test_what_is_replaced_later_is_followed_too(monkeypatch):
    from xkv.integrations.patching import installing

    hooks, seen, (host, row) = module("hooks"), [], backend()
    monkeypatch.setattr(installing, "DONE", [(row, host)])
    monkeypatch.setattr(type(row), "replace", lambda *_: None)
    monkeypatch.setattr(installing, "host_of", lambda *_: host)
    later = functools.partial(installing._replace, row, "module", logging.getLogger("x"))  # as on load
    hooks.follow(module("book").Book(), seen.append)
    assert len(seen) == 1
    later()
    assert [switch.name for switch in seen] == ["step", "step"]


def test_a_switch_launches_what_its_mode_says():
    book = module("book").Book()
    book.ready = True
    switch, own, ours = replaced(book)
    kernel = own
    for mode, theirs in (("on", 0), ("off", 1), ("on+", 0), ("off+", 1), ("spoilt", 0), ("on", 0)):
        out = torch.ones(4, dtype=torch.int32)
        own.launched.clear(), ours.clear()
        switch.set(mode)
        kernel[(3,)](out, count=4)
        assert (len(own.launched), len(ours)) == (theirs, 1 - theirs), mode
        assert out.tolist() == ([0, 1, 1, 1] if mode == "spoilt" else [1, 1, 1, 1])
    taken = book.take()
    assert taken["calls"] == {"kernel": {"served": 2}}
    assert len(taken["launch_us"]["kernel"]) == 3
    assert list(book.arguments["kernel"]) == ["page_indices"]
    assert book.arguments["kernel"]["page_indices"]["dtype"] == "int32"
    assert switch.profiled == "kernel_function"
    assert book.take()["calls"] == {}


def test_a_call_that_is_handed_back_is_counted():
    book = module("book").Book()
    switch, own, ours = replaced(book, False)
    switch.set("on+")
    own[(3,)](torch.ones(4), 4)
    assert (len(own.launched), len(ours)) == (1, 0)
    assert book.take()["calls"] == {"kernel": {"handed back": 1}}


class Fake:
    """An engine that says the same every time, unless it is spoilt."""

    def __init__(self):
        self.modes = []

    def mode(self, mode):
        self.modes.append(mode)

    def forget(self):
        pass

    def generate(self, prompts, new, logprobs):
        tokens = [list(range(new)) for _ in prompts]
        value = "0x1p-2" if self.modes[-1] == "spoilt" else "0x1p-1"
        return {"tokens": tokens, "logprobs": [[value] for _ in prompts] if logprobs else [], "cached": 0}

    def take(self):
        calls = {"kernel": {"served": 1}} if self.modes[-1:] == ["on+"] else {}
        return {
            "calls": calls, "launch_us": {}, "method_us": {}, "steps_ms": [1.0] * 8, "preempted": 0,
        }  # fmt: skip

    def profile(self, on):
        return None if on else {"kernel": [1.0]}


def test_the_rounds_end_in_a_report_that_passes():
    rounds, report, cases = module("rounds"), module("report"), module("cases")
    counts = {"compiled": 0, "loaded": 0}
    on = {"complete": True, "about": {
        "said": ["replaces kernel"], "facts": {}, "started_s": 0.0,
        "start": {"calls": {}}, "arguments": {}, "profiled": {},
        "compiles": dict.fromkeys(("xkv start", "xkv after", "others start", "others after"), counts)
        | {"names": [], "xkv after names": []},
    }}  # fmt: skip
    engine, plain = Fake(), {}
    rounds.every(engine, 5, True, True, on.__setitem__)
    rounds.plain(Fake(), 2, plain.__setitem__)
    found = report.report(cases.Case("llama", ("kernel",), {}), on, plain)
    assert found["passed"], found["checks"]
    assert found["step_ms"]["on / off"]["of"] == 5
    assert sorted(engine.modes[3:5]) == ["off", "on"]
    assert engine.modes[-8:-2] == ["on+", "off+"] * rounds.COUNTED
    assert any("64 requests" in x["what"] and "control" not in x["what"] for x in found["checks"])


def test_the_scheduler_answers_once_it_is_idle(tmp_path):
    inside = module("sglang_inside").Inside(tmp_path, "off")
    assert inside._idle(lambda: "done") == "done"
    for number, (question, answer) in enumerate(
        [({"do": "hold", "value": 2}, None), ({"do": "mode", "value": "on"}, None)], 1
    ):
        (tmp_path / f"ask{number}.json").write_text(json.dumps(question))
        inside._idle(lambda: None)
        assert json.loads((tmp_path / f"answer{number}.json").read_text()) == answer


def test_requests_wait_for_each_other(tmp_path):
    inside = module("sglang_inside").Inside(tmp_path, "off")
    inside._do("hold", 2)
    request = type("TokenizedGenerateReqInput", (), {})
    first, other, second = request(), object(), request()
    assert inside._receive(lambda: [first, other]) == [other]
    assert inside._receive(lambda: []) == []
    assert inside._receive(lambda: [second]) == [first, second]


def test_an_engine_that_does_not_start_leaves_its_log(tmp_path):
    processes = module("processes")
    env = processes.environment([], tmp_path, "off")
    assert env["XKV_DISABLE"] == "1"
    ended = processes.run(
        ["vllm", "no-such-case", "off", "--models", str(tmp_path)], env, tmp_path / "child", 60
    )
    assert ended.result is None
    assert ended.status == "exit status 1"
    assert "KeyError" in ended.log
