"""Tuning rows of sm90 (Hopper), sm100 and sm103 (Blackwell), sm120 (Blackwell, consumer)."""

from xkv.tuning import Tuning

_REASONED = "untuned, compile-checked; sm90's row"

# Swept on an H100 80GB (torch 2.11, Triton 3.6, 2026-11-23) over 12 workloads, 1 x 128K to 256 x 128K,
# cold L2; the distance is the geometric mean to the best of 24 to 60 rows at each point.
_SM90 = (
    Tuning("page", 16, 256, 4, 8, 16, True, "H100, 2026-11-23: within 1% of the best"),
    Tuning("page", None, 512, 4, 16, 256, True, "H100, 2026-11-23: within 6% of the best"),
    Tuning("token", 16, 512, 4, 8, 16, True, "H100, 2026-11-23: within 7% of the best"),
    Tuning("token", None, 2048, 4, 8, 256, True, "H100, 2026-11-23: within 4% of the best"),
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
