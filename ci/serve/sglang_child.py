"""Runs SGLang with its own tokenizer manager, scheduler process, pools, radix cache, graphs and sampler."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from serve.cases import SGLANG, Case
from serve.models import CONTEXT
from serve.workload import REQUESTS

CACHE_TOKENS = 24000  # about half of what the mixed round needs, so that requests are retracted
_PATIENCE_S = 120.0


def environment() -> dict[str, str]:
    """Sets the environment before SGLang is imported."""
    return {
        "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "SGLANG_HOST_IP": "127.0.0.1",
        "SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK": "1",
    }  # fmt: skip


def arguments(case: Case, models: Path, known: set[str]) -> dict[str, Any]:
    """Returns the arguments of the engine that this version of SGLang has.

    Args:
        case: the case.
        models: the folder of the models.
        known: the fields of its ServerArgs; options for graphs have other names in newer versions.
    """
    options = dict(case.options)
    if case.draft:
        options["speculative_draft_model_path"] = str(models / case.draft)
    graphs = {
        "cuda_graph_max_bs": REQUESTS, "cuda_graph_max_bs_decode": REQUESTS,
        "disable_piecewise_cuda_graph": True, "cuda_graph_backend_prefill": "disabled",
    }  # fmt: skip
    return {
        "model_path": str(models / case.model), "skip_tokenizer_init": True, "dtype": "bfloat16",
        "random_seed": 0, "log_level": "info", "context_length": CONTEXT, "max_total_tokens": CACHE_TOKENS,
        "max_running_requests": REQUESTS, "chunked_prefill_size": 1024, "schedule_conservativeness": 0.05,
        "mem_fraction_static": 0.5, "sampling_backend": "pytorch",
        **{k: v for k, v in graphs.items() if k in known}, **options,
    }  # fmt: skip


class Sglang:
    """See `serve.rounds.Engine`; the scheduler answers through files (`serve.sglang_inside`)."""

    def __init__(self, name: str, models: Path, way: str, folder: Path) -> None:
        os.environ.update(environment())
        os.environ.update(XKV_SERVE_FOLDER=str(folder), XKV_SERVE_WAY=way, XKV_SERVE_CASE=name)
        self._folder, self._asked = folder, 0
        start = time.perf_counter()
        import sglang
        from sglang.srt.server_args import ServerArgs

        known = {field.name for field in dataclasses.fields(ServerArgs)}
        self._engine: Any = sglang.Engine(**arguments(SGLANG[name], models, known))
        self.started_s = time.perf_counter() - start
        self._version = sglang.__version__
        self._ask("hold", REQUESTS)

    def _ask(self, do: str, value: Any = None) -> Any:
        """Sends a request to the scheduler, which answers once it is idle."""
        self._asked += 1
        unfinished = self._folder / "ask.tmp"
        unfinished.write_text(json.dumps({"do": do, "value": value}))
        unfinished.replace(self._folder / f"ask{self._asked}.json")
        answer, until = self._folder / f"answer{self._asked}.json", time.monotonic() + _PATIENCE_S
        while not answer.exists():
            if time.monotonic() > until:
                raise TimeoutError(f"the scheduler did not answer within {_PATIENCE_S} s: {do}")
            time.sleep(0.002)
        return json.loads(answer.read_text())

    def mode(self, mode: str) -> None:
        """Switches xkv."""
        self._ask("mode", mode)

    def forget(self) -> None:
        """Empties the prefix cache."""
        self._engine.flush_cache()

    def generate(self, prompts: list[list[int]], new: int, logprobs: bool) -> dict[str, Any]:
        """Serves all of them greedily."""
        params = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
        outputs = self._engine.generate(input_ids=prompts, sampling_params=params, return_logprob=logprobs)
        infos = [x["meta_info"] for x in outputs]
        return {
            "tokens": [x["output_ids"] for x in outputs],
            "logprobs": [[float(x[0]).hex() for x in info["output_token_logprobs"]] for info in infos]
            if logprobs
            else [],
            "cached": sum(info.get("cached_tokens", 0) for info in infos),
        }

    def take(self) -> dict[str, Any]:
        """Returns the records of the scheduler's process."""
        taken: dict[str, Any] = self._ask("take")
        return taken

    def profile(self, on: bool) -> dict[str, list[float]] | None:
        """Starts or ends a profile in the scheduler's process."""
        found: dict[str, list[float]] | None = self._ask("profile", on)
        return found

    def about(self) -> dict[str, Any]:
        """Returns information about the engine, its start and the arguments of its launches."""
        import torch

        about: dict[str, Any] = self._ask("about")
        about["started_s"] = self.started_s
        about["facts"] |= {"engine": f"SGLang {self._version}", "torch": torch.__version__}
        return about


# SGLang's own CUDA kernels that these cases use, in 0.5.17 and in 0.5.13. SGLang compiles them on first use,
# one after the other. Each is a module, a function of it, and arguments; dtypes by name.
WARM: dict[str, tuple[tuple[str, str, tuple[Any, ...]], ...]] = {
    "clamp": (
        ("kernels.ops.attention.clamp_position", "_jit_clamp_position_module", ("int64",)),
        ("jit_kernel.clamp_position", "_jit_clamp_position_module", ("int64",)),
    ),
    "act": (("jit_kernel.activation", "_jit_activation_module", ("bfloat16",)),),
    "store": (
        ("kernels.ops.kvcache.kvcache", "_jit_kvcache_module", (1024, 1024)),
        ("jit_kernel.kvcache", "_jit_kvcache_module", (1024,)),
    ),
    "rope": (
        ("kernels.ops.attention.rope", "_jit_fused_rope_module", (True, 128, "bfloat16", "bfloat16")),
        ("jit_kernel.rope", "_jit_fused_rope_module", (True, 128, "bfloat16")),
    ),
    "rope_mla": (
        ("kernels.ops.attention.rope", "_jit_fused_rope_module", (False, 64, "bfloat16", "bfloat16")),
        ("jit_kernel.rope", "_jit_fused_rope_module", (False, 64, "bfloat16")),
    ),
    "mla_store": (
        ("kernels.ops.kvcache.set_mla_kv_buffer", "can_use_set_mla_kv_buffer", (1024, 128)),
        ("jit_kernel.set_mla_kv_buffer", "can_use_set_mla_kv_buffer", (1024, 128)),
    ),
}


def warm(name: str) -> None:
    """Compiles one of these kernels in the variant of this SGLang version."""
    import importlib

    import torch

    for module, function, given in WARM[name]:
        try:
            found = importlib.import_module("sglang." + module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"sglang.{module}.".startswith(error.name + "."):
                raise
            continue  # the module of another version
        getattr(found, function)(*(getattr(torch, x) if isinstance(x, str) else x for x in given))
        return
