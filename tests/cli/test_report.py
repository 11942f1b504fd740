"""`python -m xkv report`: parts that succeed, fail, crash or take too long, and what the archive has."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from xkv.__main__ import main
from xkv.cli import report
from xkv.cli.report import parts, privacy
from xkv.cli.report.parts import PARTS, Part

ROOT = Path(__file__).resolve().parents[2]
FAKE = """
import os, pathlib, signal, sys
print("begun", *sys.argv[1:])
if sys.argv[1] == "fails":
    pathlib.Path(sys.argv[-1]).write_text('{"half": "/home/someone/site-packages/xkv/a.py"}')
    print("it is missing in", __file__, file=sys.stderr)
    sys.exit(2)
if sys.argv[1] == "crashes":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "endless":
    signal.pause()
"""

pytestmark = pytest.mark.repo  # plain Python, and processes that see no GPU


def fake(name: str, json: str = "") -> Part:
    return Part(name, lambda args: ["fake_part", name], json)


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts such parts in the place of the real ones; returns the archive's name."""
    (tmp_path / "fake_part.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)

    def put(*those: Part) -> Path:
        monkeypatch.setattr(report, "PARTS", {part.name: part for part in those})
        return tmp_path / "report.zip"

    return put


def read(archive: Path) -> tuple[dict[str, str], list[dict[str, object]]]:
    """The files, and what the summary says of each part."""
    with zipfile.ZipFile(archive) as zipped:
        assert zipped.testzip() is None
        files = {name: zipped.read(name).decode() for name in zipped.namelist()}
    return files, json.loads(files.pop(report.SUMMARY))["parts"]


def test_a_part_that_fails_does_not_lose_the_others(
    faked: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = faked(fake("good"), fake("fails", "fails.json"), fake("crashes", "crashes.json"), fake("last"))
    assert main(["report", "--out", str(out)]) == 1
    files, said = read(out)
    assert [(each["name"], each["status"]) for each in said] == [
        ("good", 0), ("fails", 2), ("crashes", -9), ("last", 0)
    ]  # fmt: skip
    assert files == {
        "good.txt": "begun good\n",
        "fails.txt": "begun fails --json fails.json\nit is missing in fake_part.py\n",
        "fails.json": '{"half": "xkv/a.py"}',
        "crashes.txt": "begun crashes --json crashes.json\n",
        "last.txt": "begun last\n",
    }
    assert said[1]["command"] == "fake_part fails --json fails.json"
    shown, err = capsys.readouterr()
    assert "at most 40 minutes" in shown
    assert [line.split()[:2] for line in shown.splitlines()[1:-1]] == [
        ["good", "ok"], ["fails", "status"], ["crashes", "status"], ["last", "ok"]
    ]  # fmt: skip
    assert err.splitlines() == [
        "xkv report: without success, and in the archive:",
        "  fails: status 2: it is missing in fake_part.py",
        "  crashes: status -9: begun crashes --json crashes.json",
    ]


def test_a_part_that_takes_too_long_is_ended(faked: Callable[..., Path]) -> None:
    """It would wait for ever."""
    out = faked(fake("endless"), fake("last"))

    assert main(["report", "--out", str(out), "--minutes", "0.02"]) == 1
    _, said = read(out)
    assert (said[0]["status"], said[1]["name"]) == (None, "last")


def test_all_is_well(faked: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = faked(fake("good"))
    assert main(["report", "--out", str(out)]) == 0
    assert capsys.readouterr().err == ""


def test_interrupted(faked: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is in the archive, which is whole; the process of the part is ended."""
    out = faked(fake("good"), fake("endless"))
    real = subprocess.Popen.wait
    ended = []

    def wait(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is not None and len(ended) == 1:
            raise KeyboardInterrupt
        ended.append(real(self))
        return ended[-1]

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    assert main(["report", "--out", str(out)]) == 130
    files, said = read(out)
    assert ended == [0, -9]
    assert list(files) == ["good.txt"]
    assert [each["name"] for each in said] == ["good"]


def test_where_no_gpu_is_seen(tmp_path: Path) -> None:
    """Real parts: info and check have something to say, bench and tune say why not; none is left out."""
    out = tmp_path / "report.zip"
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "XKV_ARCH")} | hidden
    names = ["info", "hostile", "bench", "tune"]
    command = [sys.executable, "-m", "xkv", "report", "--out", str(out), "--hostile", "5", "--parts", *names]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    files, said = read(out)
    assert [(each["name"], each["status"]) for each in said] == [
        ("info", 0), ("hostile", 0), ("bench", 2), ("tune", 2)
    ]  # fmt: skip
    assert files["bench.txt"] == "xkv bench: kernels are timed on a GPU, and there is none\n"
    assert files["tune.txt"] == "tune: rows are measured on a GPU, and there is none\n"
    assert "no GPU" in files["info.txt"]
    assert files["hostile.txt"].startswith("xkv ")
    assert done.stderr.splitlines()[1:] == [
        f"  {n}: status 2: {files[f'{n}.txt'].strip()}" for n in names[2:]
    ]


def test_the_parts_are_real_commands(tmp_path: Path) -> None:
    """Each takes the arguments that a report gives it."""
    from xkv.__main__ import _parser
    from xkv.cli.tune import command

    for flags in ([], ["--quick"], ["--full"]):
        args = _parser().parse_args(["report", "--out", str(tmp_path / "x.zip"), *flags])
        for part in PARTS.values():
            module, *arguments = part.arguments(args)
            arguments += ["--json", part.json] if part.json else []
            parser = {"xkv": _parser, "xkv.cli.tune": command.parser}[module]()
            assert isinstance(parser.parse_args(arguments), argparse.Namespace)


@pytest.mark.parametrize("missing", ["tabulate", "tqdm"])
def test_a_missing_extra_is_said_first(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    out = tmp_path / "report.zip"
    assert main(["report", "--out", str(out)]) == 2
    assert capsys.readouterr() == (
        "",
        f"xkv report: {missing} is missing, which bench, sparse, extend, tune need; pip install 'xkv[bench]',"
        " or --parts info check hostile\n",
    )
    assert not out.exists()
    monkeypatch.setattr(parts, "run", lambda part, args, folder: parts.Result("info", "", 0, 0.0, [], ""))
    assert main(["report", "--out", str(out), "--parts", "info"]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--minutes", "inf"], "--minutes must be more than 0"),
        (["--tune-minutes", "nan"], "--tune-minutes must be more than 0"),
        (["--hostile", "-1"], "--hostile must be more than 0"),
        (["--out", "missing/report.zip"], "--out: there is no folder"),
    ],
)
def test_refused(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.zip"
    assert main(["report", "--out", str(out), *flags]) == 2
    assert capsys.readouterr().err.startswith(f"xkv report: {said}")
    assert not out.exists()


class TestPrivacy:
    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ('File "/home/ann/lib/site-packages/xkv/ops/a.py", line 9', 'File "xkv/ops/a.py", line 9'),
            ('  File "/usr/lib/python3/dist-packages/torch/_ops.py"', '  File "torch/_ops.py"'),
            ('  File "/usr/lib/python3.12/runpy.py", line 88', '  File "runpy.py", line 88'),
            ("/scratch/ann/xkv/__main__.py --json /tmp/abc123/bench.json", "__main__.py --json bench.json"),
            ("cache='/root/.triton/cache/x.json'", "cache='x.json'"),
            ("a/b, a // b, 3 / 4 us, https://example.org/a/b", "a/b, a // b, 3 / 4 us, https://example.org/a/b"),
        ],
    )  # fmt: skip
    def test_folders(self, text: str, kept: str) -> None:
        assert privacy.cleaned(text) == kept
        assert privacy.cleaned(text, is_json=True) == kept

    def test_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("USER", "ann")
        monkeypatch.setenv("LOGNAME", "a")
        monkeypatch.setenv("HOME", "/people/annabel")
        monkeypatch.setattr(platform, "node", lambda: "mi300-7.cluster.example")
        text = "annotated by ann@mi300-7 (mi300-7.cluster.example) in /people/annabel, a MI300"
        assert privacy.cleaned(text) == "annotated by <user>@<host> (<host>) in <user>, a MI300"
        assert "ann@" in privacy.cleaned(text, is_json=True)
