"""Tuning rows of sm90 (Hopper), sm100 and sm103 (Blackwell), sm120 (Blackwell, consumer)."""

from xkv.tuning import Tuning

_REASONED = "untuned, compile-checked; sm90's row"

# Chosen by a sweep over block size, warps and programs on 1 x 128K to 256 x 128K tokens, cold L2. The times
# are a builder's whole step by `python -m xkv steps`, torch 2.11, Triton 3.6.
_H100 = "H100 80GB, 2026-11-23:"
_SM90 = (
    Tuning("page", 16, 256, 4, 8, 1, 16, f"{_H100} flashmla, 1 x 64K, 2.0 to 2.5 us"),
    Tuning("page", None, 512, 4, 16, 1, 256, f"{_H100} flashmla, 256 x 4K, 2.9 us"),
    Tuning("token", 16, 512, 4, 8, 1, 16, f"{_H100} flashinfer_mla, 1 x 64K, 2.2 us"),
    Tuning("token", None, 2048, 4, 8, 1, 256, f"{_H100} flashinfer_mla, 256 x 4K, 8.8 us"),
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
