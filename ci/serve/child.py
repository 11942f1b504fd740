"""Starts one engine in this process, runs its rounds, and writes the results.

python -m serve.child ENGINE CASE on|off FOLDER [--models ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from serve import rounds
from serve.cases import ENGINES


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments, which ``serve.processes`` passes."""
    made = argparse.ArgumentParser(prog="serve.child")
    made.add_argument("engine", choices=sorted(ENGINES))
    made.add_argument("case")
    made.add_argument("way", choices=("on", "off"))
    made.add_argument("folder", type=Path)
    made.add_argument("--models", type=Path, required=True)
    made.add_argument("--pairs", type=int, default=5)
    made.add_argument("--spoil", action="store_true")
    made.add_argument("--no-profile", action="store_true")
    return made


def main(arguments: list[str]) -> None:
    """Runs the engine; every part of the results is added to ``result.json``."""
    given = parser().parse_args(arguments)
    engine: Any
    if given.engine == "vllm":
        from serve.vllm_child import Vllm

        engine = Vllm(given.case, given.models, given.way)
    else:
        from serve.sglang_child import Sglang

        engine = Sglang(given.case, given.models, given.way, given.folder)
    result: dict[str, Any] = {"engine": given.engine, "case": given.case, "way": given.way}

    def save(name: str, value: Any) -> None:
        result[name] = value
        result["about"] = engine.about()
        unfinished = given.folder / "result.tmp"
        unfinished.write_text(json.dumps(result))
        unfinished.replace(given.folder / "result.json")
        print(f"serve.child: {name} done", flush=True)

    if given.way == "on":
        rounds.every(engine, given.pairs, given.spoil, not given.no_profile, save)
    else:
        rounds.plain(engine, given.pairs, save)
    save("complete", True)
    sys.stdout.flush()
    os._exit(0)  # all results are written; the parent process ends the engine's other processes


if __name__ == "__main__":
    main(sys.argv[1:])
