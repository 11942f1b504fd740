"""Runs vLLM in this process with its own scheduler, cache manager, runner, graphs, attention, sampler."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from serve import hooks
from serve.book import Book
from serve.cases import VLLM, Case
from serve.flashinfer_ops import without_fa3
from serve.models import CONTEXT
from serve.workload import REQUESTS

CACHE_TOKENS = 25600  # about half of what the mixed round needs, so that requests are preempted


def environment(case: Case) -> dict[str, str]:
    """Sets the environment before vLLM is imported: one process, so that every schedule is the same."""
    return {
        "VLLM_USE_V2_MODEL_RUNNER": "1" if case.runner == 2 else "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_HAS_FLASHINFER_CUBIN": "1",  # otherwise it downloads some that no case uses
        "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


class Vllm:
    """See `serve.rounds.Engine`."""

    def __init__(self, name: str, models: Path, way: str) -> None:
        case = VLLM[name]
        os.environ.update(environment(case))
        self._book, self._switches = Book(), list[hooks.Switch]()
        self._book.listen()
        if way == "on":
            hooks.follow(self._book, self._attach)
        if name.startswith("flashinfer"):
            without_fa3()
        start = time.perf_counter()
        from vllm import LLM

        self._llm: Any = LLM(**_arguments(case, models))
        self.started_s = time.perf_counter() - start
        core = self._llm.llm_engine.engine_core.engine_core
        worker = core.model_executor.driver_worker
        self._runner = getattr(worker, "worker", worker).model_runner
        self._watch(core, case)
        self.facts = _facts(self._llm, core, self._runner)
        self.start = self._book.take()
        self._book.ready = True

    def _attach(self, switch: hooks.Switch) -> None:
        switch.set("on+")  # counts the calls that are captured in graphs at the start
        self._switches.append(switch)

    def _watch(self, core: Any, case: Case) -> None:
        if case.runner == 2:
            for method in ("gather_block_tables", "compute_slot_mappings"):
                self._book.wrap(self._runner.block_tables, method, method)
        else:
            table = self._runner.input_batch.block_table
            self._book.wrap(table, "compute_slot_mapping", "compute_slot_mapping")
        preempt, step = core.scheduler._preempt_request, self._llm.llm_engine.step

        def preempted(*args: Any, **kwargs: Any) -> Any:
            self._book.preempted += 1
            return preempt(*args, **kwargs)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = step(*args, **kwargs)
            self._book.steps_ms.append(1e3 * (time.perf_counter() - start))
            return result

        core.scheduler._preempt_request, self._llm.llm_engine.step = preempted, stepped

    def mode(self, mode: str) -> None:
        """Switches xkv."""
        for switch in self._switches:
            switch.set(mode)

    def forget(self) -> None:
        """Empties the prefix cache."""
        self._llm.reset_prefix_cache()

    def generate(self, prompts: list[list[int]], new: int, logprobs: bool) -> dict[str, Any]:
        """Serves all of them greedily."""
        import torch
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=new,
            ignore_eos=True,
            detokenize=False,
            logprobs=1 if logprobs else None,
        )
        outputs = self._llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        torch.cuda.synchronize()
        return {
            "tokens": [list(x.outputs[0].token_ids) for x in outputs],
            "logprobs": [_hexadecimal(x.outputs[0]) for x in outputs] if logprobs else [],
            "cached": sum(x.num_cached_tokens or 0 for x in outputs),
        }

    def take(self) -> dict[str, Any]:
        """Returns the records."""
        return self._book.take()

    def profile(self, on: bool) -> dict[str, list[float]] | None:
        """Starts or ends a profile."""
        return hooks.profile(self._book, on, self._switches)

    def about(self) -> dict[str, Any]:
        """Returns information about the engine, its start and the arguments of its launches."""
        return {
            "started_s": self.started_s, "start": self.start, "facts": self.facts,
            "compiles": self._book.compiles(), "arguments": self._book.arguments,
            "profiled": hooks.profiled(self._switches),
        }  # fmt: skip


def _arguments(case: Case, models: Path) -> dict[str, Any]:
    options = dict(case.options)
    if case.draft:
        options["speculative_config"] = options["speculative_config"] | {"model": str(models / case.draft)}
    return {
        "model": str(models / case.model), "skip_tokenizer_init": True, "dtype": "bfloat16", "seed": 0,
        "max_model_len": CONTEXT, "max_num_seqs": REQUESTS, "max_num_batched_tokens": 1024,
        "num_gpu_blocks_override": CACHE_TOKENS // case.options["block_size"], "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": True, "enable_chunked_prefill": True, "disable_log_stats": True,
        "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}, **options,
    }  # fmt: skip


def _facts(llm: Any, core: Any, runner: Any) -> dict[str, Any]:
    import torch
    import vllm

    backends = {
        getattr(getattr(group, "backend", group), "__name__", type(group).__name__)
        for groups in getattr(runner, "attn_groups", []) for group in groups
    }  # fmt: skip
    return {
        "engine": f"vLLM {vllm.__version__}", "torch": torch.__version__, "attention": sorted(backends),
        "groups": len(getattr(core.scheduler.kv_cache_config, "kv_cache_groups", [])),
        "graphs": str(llm.llm_engine.vllm_config.compilation_config.cudagraph_mode),
        "runner": type(runner).__module__,
    }  # fmt: skip


def _hexadecimal(output: Any) -> list[str]:
    chosen = zip(output.logprobs, output.token_ids, strict=True)
    return [float(step[token].logprob).hex() for step, token in chosen]
