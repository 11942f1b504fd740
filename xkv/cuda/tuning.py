"""Tuning rows of sm90 (Hopper), sm100 and sm103 (Blackwell), sm120 (Blackwell, consumer)."""

from ..platforms.tuning import Tuning

_REASONED = "untuned, compile-checked; sm90's row"

# in the format of ci/tune.py's output
# fmt: off
_SM90 = (
    Tuning(
        "strided_far", 16, 256, 4, 8, 2, 8, 256, 1, 16, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.013 of the best of each point, most 1.12 (8 x 8K in 1M, page 32, csr)",
    ),
    Tuning(
        "strided_far", None, 512, 4, 8, 4, 2, 256, 1, 256, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.005 of the best of each point, most 1.04 (1 x 1M + 255 x 4K in 1M, page 64, csr)",
    ),
    Tuning(
        "strided_near", 16, 256, 4, 8, 2, 2, 256, 1, 16, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.006 of the best of each point, most 1.03 (1 x 128K, page 16)",
    ),
    Tuning(
        "strided_near", None, 1024, 4, 8, 4, 4, 256, 1, 256, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.002 of the best of each point, most 1.01 (256 x 4K in 128K, page 16, csr)",
    ),
    Tuning(
        "contiguous", 16, 1024, 4, 8, 4, 4, 512, 1, 16, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.007 of the best of each point, most 1.01 (8 x 8K in 1M, page 1)",
    ),
    Tuning(
        "contiguous", None, 1024, 4, 8, 4, 8, 1024, 1, 256, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.023 of the best of each point, most 1.11 (256 x ~4K in 128K, page 1); the first of "
        "its list has 2048 for 1024 and 32 x 32K in 4.3 us for 4.1",
    ),
    Tuning(
        "ragged", 16, 2048, 4, 8, 2, 2, 1024, 1, 16, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.003 of the best of each point, most 1.01 (1 x 128K, page 1, csr)",
    ),
    Tuning(
        "ragged", None, 2048, 8, 4, 4, 4, 2048, 2, 256, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.020 of the best of each point, most 1.14 (4 x 128K + 252 x 2K in 128K, page 1, "
        "csr)",
    ),
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

DEFAULT_ARCH = "sm90"


def family(arch: str) -> str | None:
    """Returns the arch whose rows serve others of its major version, or None: "sm101" -> "sm100"."""
    return {"9": "sm90", "10": "sm100", "12": "sm120"}.get(arch.removeprefix("sm")[:-1])
