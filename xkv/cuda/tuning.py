"""Tuning rows of sm90 (Hopper), sm100 and sm103 (Blackwell), sm120 (Blackwell, consumer)."""

from ..platforms.tuning import ChosenTuning, Tuning

_REASONED = "untuned, compile-checked; sm90's row"
_BY_HAND = "NVIDIA H200, 2026-11-29, torch 2.11, Triton 3.6: the best of a dozen tried by hand, not swept"

# in the format of ci/tune.py's output
# fmt: off
_SM90 = (
    Tuning(
        "strided_far", 16, 256, 4, 8, 2, 2, 64, 1, 4, 16, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.010 of the "
        "best of each point, most 1.03 (8 x 8K in 1M, page 32, csr)",
    ),
    Tuning(
        "strided_far", None, 512, 4, 8, 4, 2, 256, 1, 1, 256, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.008 of the "
        "best of each point, most 1.05 (4 x 128K + 252 x 2K in 128K, page 32, csr)",
    ),
    Tuning(
        "strided_near", 16, 128, 4, 8, 2, 2, 256, 1, 4, 16, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.015 of the "
        "best of each point, most 1.03 (1 x 128K, page 16, csr)",
    ),
    Tuning(
        "strided_near", None, 1024, 4, 8, 4, 2, 512, 1, 1, 256, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.014 of the "
        "best of each point, most 1.13 (4 x 128K + 252 x 2K in 128K, page 16)",
    ),
    Tuning(
        "contiguous", 16, 2048, 4, 8, 2, 2, 1024, 1, 4, 16, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.008 of the "
        "best of each point, most 1.01 (1 x 128K, page 1)",
    ),
    Tuning(
        "contiguous", None, 1024, 4, 4, 2, 4, 2048, 2, 4, 256, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.009 of the "
        "best of each point, most 1.03 (256 x 128K, page 1)",
    ),
    Tuning(
        "ragged", 16, 2048, 4, 8, 2, 2, 1024, 1, 4, 16, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.009 of the "
        "best of each point, most 1.02 (1 x 128K, page 1, csr)",
    ),
    Tuning(
        "ragged", None, 2048, 4, 4, 4, 4, 2048, 2, 4, 256, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.051 of the "
        "best of each point, most 1.12 (32 x 32K in 128K, page 1, csr)",
    ),
    Tuning(
        "expand", 16, 2048, 4, 8, 2, 2, 1024, 1, 4, 16, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.017 of the "
        "best of each point, most 1.04 (1 x 128K, page 1 of 16, csr)",
    ),
    Tuning(
        "expand", None, 1024, 4, 8, 4, 2, 2048, 2, 4, 256, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.069 of the "
        "best of each point, most 1.25 (256 x ~4K in 128K, page 1 of 16)",
    ),
    Tuning(
        "mapped", 16, 256, 4, 8, 2, 8, 256, 1, 4, 16, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.059 of the "
        "best of each point, most 1.45 (1 x 1M, page 1, map)",
    ),
    Tuning(
        "mapped", None, 512, 4, 8, 2, 2, 512, 1, 4, 256, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.053 of the "
        "best of each point, most 1.22 (256 x 8K in 1M, page 16, csr, map)",
    ),
    Tuning(
        "query_tokens", None, 64, 1, 8, 1, 4, 128, 1, 1, 256, True,
        "NVIDIA H200, 2026-11-29, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, 1.008 of the "
        "best of each point, most 1.02 (32 x 32K in 128K, 256 query tokens each)",
    ),
    Tuning("extension", 16, 512, 2, 1, 2, 1, 512, 1, 1, 16, True, _BY_HAND),
    Tuning("extension", 64, 512, 2, 1, 2, 1, 512, 1, 1, 64, True, _BY_HAND),
    Tuning("extension", 256, 512, 4, 1, 8, 1, 512, 1, 1, 256, True, _BY_HAND),
    Tuning("extension", None, 512, 8, 1, 8, 1, 512, 1, 1, 512, True, _BY_HAND),
)
# fmt: on


def _borrow(rows: tuple[Tuning, ...], provenance: str) -> tuple[Tuning, ...]:
    return tuple(Tuning(**{**vars(row), "provenance": provenance}) for row in rows)


TUNING = {
    "sm90": _SM90,
    "sm100": _borrow(_SM90, _REASONED),
    "sm103": _borrow(_SM90, _REASONED),
    "sm120": _borrow(_SM90, _REASONED),
}

_SPARSE = (
    "NVIDIA H200, 2026-11-30, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, {} of the best of each point, "
    "most {}"
)
_CHOSEN = (
    ChosenTuning(16, False, 128, 4, 4, 1, True, 256, True, _SPARSE.format("1.008", "1.03")),
    ChosenTuning(256, False, 1024, 8, 8, 1, True, 256, True, _SPARSE.format("1.006", "1.01")),
    ChosenTuning(None, False, 2048, 8, 4, 1, True, 256, True, _SPARSE.format("1.018", "1.06")),
    ChosenTuning(16, True, 2048, 16, 8, 1, False, 256, True, _SPARSE.format("1.005", "1.02")),
    ChosenTuning(256, True, 2048, 16, 8, 1, True, 256, True, _SPARSE.format("1.004", "1.01")),
    ChosenTuning(None, True, 2048, 8, 4, 4, True, 256, True, _SPARSE.format("1.017", "1.07")),
)
CHOSEN = {"sm90": _CHOSEN, "sm100": _CHOSEN, "sm103": _CHOSEN, "sm120": _CHOSEN}

DEFAULT_ARCH = "sm90"


def family(arch: str) -> str | None:
    """Returns the arch whose rows serve others of its major version, or None: "sm101" -> "sm100"."""
    return {"9": "sm90", "10": "sm100", "12": "sm120"}.get(arch.removeprefix("sm")[:-1])
