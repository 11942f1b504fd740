"""Tuning rows of sm90 (Hopper), sm100 and sm103 (Blackwell), sm120 (Blackwell, consumer)."""

from xkv.tuning import Tuning

_REASONED = "untuned, compile-checked; sm90's row"

_SM90 = (
    Tuning(
        "far", 16, 256, 4, 8, 2, 2, 256, 16, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.019 of the best of each point, most 1.07 (8 x 8K in 1M, page 32, csr)",
    ),
    Tuning(
        "far", None, 512, 4, 8, 4, 2, 512, 256, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.021 of the best of each point, most 1.09 (256 x 4K in 128K, page 64, csr)",
    ),
    Tuning(
        "near", 16, 256, 4, 8, 2, 2, 256, 16, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.009 of the best of each point, most 1.01 (1 x 128K, page 16)",
    ),
    Tuning(
        "near", None, 1024, 4, 8, 4, 2, 1024, 256, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.004 of the best of each point, most 1.03 (256 x 128K, page 16, csr)",
    ),
    Tuning(
        "token", 16, 1024, 4, 8, 2, 2, 1024, 16, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.009 of the best of each point, most 1.03 (1 x 1M, page 1, csr)",
    ),
    Tuning(
        "token", None, 2048, 8, 4, 4, 4, 2048, 256, True,
        "NVIDIA H100 80GB HBM3, 2026-11-23, torch 2.11.0+cu130, Triton 3.6.0: ci/tune.py, "
        "1.014 of the best of each point, most 1.05 (256 x 128K, page 1, csr)",
    ),
)


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
    """The arch whose rows serve another one of the same major version, or None: "sm101" -> "sm100"."""
    return {"9": "sm90", "10": "sm100", "12": "sm120"}.get(arch.removeprefix("sm")[:-1])
