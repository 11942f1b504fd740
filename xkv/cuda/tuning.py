"""Tuning rows of sm90 (Hopper), sm100 and sm103 (Blackwell), sm120 (Blackwell, consumer)."""

from xkv.tuning import Tuning

_REASONED = "untuned, compile-checked; sm90's row"

_SM90 = (
    Tuning("far", 16, 256, 4, 2, 2, 2, 16, True, "TUNE"),
    Tuning("far", None, 256, 4, 8, 4, 4, 256, True, "TUNE"),
    Tuning("near", 16, 256, 4, 2, 2, 2, 16, True, "TUNE"),
    Tuning("near", None, 1024, 4, 8, 4, 4, 256, False, "TUNE"),
    Tuning("token", 16, 2048, 4, 2, 2, 2, 16, True, "TUNE"),
    Tuning("token", None, 2048, 4, 8, 4, 4, 256, False, "TUNE"),
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
