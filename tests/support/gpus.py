"""Which GPU is a worker's first: xdist's workers spread over the node's GPUs.

Each worker sees all of them, in an order that begins with its own: "cuda", "cuda:0" and what its
subprocesses take by default are then its own, and tests of two GPUs still find two. The order must stand
before torch is imported, which is when only the controller knows how many GPUs there are; it tells.
"""

from __future__ import annotations

from collections.abc import MutableMapping

OFFER = "XKV_TEST_GPUS"  # from the controller to its workers: NAME=ID,ID,... of what torch sees


def offer(environ: MutableMapping[str, str], count: int, hip: bool) -> None:
    """In the controller: notes its GPUs for the workers, which inherit its environment."""
    name = "CUDA_VISIBLE_DEVICES"
    if hip and ("HIP_VISIBLE_DEVICES" in environ or name not in environ):  # HIP heeds either, its own first
        name = "HIP_VISIBLE_DEVICES"
    visible = environ.get(name)
    ids = visible.split(",")[:count] if visible else [str(n) for n in range(count)]
    environ[OFFER] = f"{name}={','.join(ids)}"


def take(environ: MutableMapping[str, str]) -> None:
    """In a worker, before torch is imported: puts its own GPU first; elsewhere nothing."""
    if "PYTEST_XDIST_WORKER" not in environ or OFFER not in environ:
        return
    name, _, ids = environ[OFFER].partition("=")
    order = ids.split(",")
    first = int(environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(order)
    environ[name] = ",".join(order[first:] + order[:first])
