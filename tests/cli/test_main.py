"""`python -m xkv`: commands, help, exit statuses, and what is left where torch is missing."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import xkv
from xkv.__main__ import main
from xkv.cli import check, demo, info

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("info", "demo", "check")


def process(*command: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    env.pop("TRITON_INTERPRET", None)  # a process of its own: what it prints must not depend on it
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, cwd="/", stdout=stdout, stderr=pipe, text=True)


def python(*arguments: str) -> tuple[int, str, str]:
    with process(sys.executable, *arguments) as running:
        out, err = running.communicate()
    return running.returncode, out, err


def test_help_names_every_command_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom xkv.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)\n"
    )
    status, out, err = python("-c", code, "--help")
    assert status == 0
    assert out.startswith("usage: xkv ")
    for command in COMMANDS:
        assert f"\n    {command}  " in out
    assert "'xkv'" in err
    for heavy in ("torch", "triton", "numpy", "tqdm", "tabulate", "msgspec"):
        assert f"'{heavy}'" not in err


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("info", ("--kernels", "--arch")),
        ("demo", ("--trace", "--steps")),
        ("check", ("--device", "--quick")),
        ("bench", ("--suite", "--peers", "--trace", "--from")),
    ],
)
def test_help_of_a_command(command: str, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: xkv {command} ")
    assert all(f"  {flag}" in out for flag in flags)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"xkv {xkv.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [[], ["tune"], ["info", "--quick"], ["info", "--arch", "gfx90a"], ["check", "--device", "tpu"]],
)
def test_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: xkv")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_tools_status_is_the_exit_status(
    command: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    tool = {"info": info, "demo": demo, "check": check}[command]
    monkeypatch.setattr(tool, "run", lambda args: seen.append(args) or status)
    assert main([command]) == status
    assert [type(args) for args in seen] == [argparse.Namespace]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_torch(command: str) -> None:
    """One sentence on stderr, status 2; what info did find is still printed."""
    hide = "import sys; sys.modules['torch'] = None\nfrom xkv.__main__ import main\n"
    status, out, err = python("-c", f"{hide}sys.exit(main(['{command}']))")
    assert status == 2
    assert err.startswith(f"xkv {command}: torch is not installed, and xkv never installs it: ")
    assert err.count("\n") == 1
    if command == "info":
        assert ["torch", "not", "installed"] in [line.split() for line in out.splitlines()]
    else:
        assert out == ""


def test_unsupported_platform(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XKV_ARCH", "vax780")
    for command in ("info", "check"):
        assert main([command]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"xkv {command}: XKV_ARCH='vax780'")
        assert err.count("\n") == 1


def test_other_exceptions_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: argparse.Namespace) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(info, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["info"])


# A self-test that says when it is in the midst of a case, and is there until it is interrupted.
ENDLESS = """
import signal, sys, time
from xkv.__main__ import main
from xkv.cli.check import selftest

def case():
    print("in the midst", flush=True)
    while True:
        time.sleep(0.01)

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores SIGINT
selftest.GROUPS = {"endless": lambda bench: [("one", case)]}
sys.exit(main(["check", "--device", "cpu"]))
"""


def test_interrupt() -> None:
    """A real SIGINT in the midst of it: status 130, no traceback."""
    with process(sys.executable, "-c", ENDLESS) as running:
        assert running.stdout is not None
        assert any("in the midst" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate()
    assert (running.returncode, err) == (130, "xkv: interrupted\n")


@pytest.mark.parametrize("arguments", [["info"], ["check", "--device", "cpu", "--quick"], ["--help"]])
def test_broken_pipe(arguments: list[str]) -> None:
    """The reader is gone before a line is printed: no traceback, and the status of SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    with process(sys.executable, "-m", "xkv", *arguments, stdout=write) as running:
        os.close(write)
        _, err = running.communicate()
    # argparse ignores what it cannot print, if stdout is not buffered
    assert running.returncode in ((0, 141) if arguments == ["--help"] else (141,))
    assert err == ""


def test_closed_stdout() -> None:
    with process("sh", "-c", '"$0" -m xkv info >&-', sys.executable) as running:
        _, err = running.communicate()
    assert (running.returncode, err) == (0, "")
