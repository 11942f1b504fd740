"""The plugins' line in the real engines' own logs, configured by their own code: ci/engines.sh."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"

# As `Engine`, `sglang serve` and the scheduler's process do: plugins first.
SGLANG = """
import importlib.util, logging, sys
from types import ModuleType, SimpleNamespace

from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.utils.common import configure_logger

if importlib.util.find_spec("huggingface_hub") is None:  # of which SGLang configures the logger alone
    hub, utils = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.utils")
    logger = logging.getLogger("huggingface_hub")
    utils.logging = SimpleNamespace(get_logger=lambda: logger, enable_propagation=lambda: None)
    sys.modules |= {"huggingface_hub": hub, "huggingface_hub.utils": utils}
configure_logger(SimpleNamespace(log_level="LEVEL"), prefix=" TP0")
logging.getLogger("sglang.srt.managers.scheduler").info("the engine's first")
load_plugins()
configure_logger(SimpleNamespace(log_level="LEVEL"), prefix=" TP0")
logging.getLogger("sglang.srt.managers.scheduler").info("the engine's second")
"""

# As `LLM` does, whose arguments load the plugins; a worker's process configures logging before.
VLLM = """
import sys, tempfile
from pathlib import Path

sys.path.insert(0, SUPPORT)
from vllm_engine import ROOT, distribution, folder, installed

root, dist = folder(), Path(tempfile.mkdtemp())
distribution(dist)
with installed(ROOT, dist, root, root=root):
    import vllm.logger
    import vllm.plugins

    if WORKER:
        vllm.logger._configure_vllm_root_logger()
    vllm.plugins.load_general_plugins()
    vllm.logger._configure_vllm_root_logger()
    log = vllm.logger.init_logger("vllm.v1.engine.core")
    log.info("the engine's first")
    log.info("the engine's second")
"""


def said(program: str, **environment: str) -> list[str]:
    env = {name: value for name, value in os.environ.items() if name != "XKV_DISABLE"} | environment
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "xkv" in line or "the engine's" in line]


@pytest.mark.parametrize("level", ["info", "warning"])
def test_sglang(level: str) -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("no SGLang here: see ci/engines.sh")
    lines = [line for line in said(SGLANG.replace("LEVEL", level)) if "plugin" not in line]
    if level == "warning":
        assert lines == []
        return
    line, *own = lines
    assert line.startswith("[")
    assert " TP0] xkv " in line
    assert " in SGLang " in line
    assert [text.split("] ")[1] for text in own] == ["the engine's first", "the engine's second"]


@pytest.mark.parametrize("worker", [False, True])
def test_vllm(worker: bool) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("no vLLM here: see ci/engines.sh")
    line, *own = said(VLLM.replace("SUPPORT", repr(str(SUPPORT))).replace("WORKER", str(worker)))
    assert " INFO " in line
    assert "] xkv " in line
    assert " in vLLM " in line
    assert [text.split("] ")[1] for text in own] == ["the engine's first", "the engine's second"]
