"""Tuning rows of gfx942 (MI300) and gfx950 (MI350).

Reasoned from sm90's rows: a wavefront has 64 lanes, so half the warps for the same block; 304 (MI300X)
and 256 (MI355X) compute units, so fewer programs on each.
"""

from xkv.tuning import Tuning

_REASONED = "untuned, compile-checked"

_CDNA = (
    Tuning("page", 16, 64, 1, 4, 16, True, _REASONED),
    Tuning("page", None, 256, 4, 4, 256, True, _REASONED),
    Tuning("token", 16, 1024, 4, 4, 16, True, _REASONED),
    Tuning("token", None, 1024, 4, 4, 256, True, _REASONED),
)

TUNING = {"gfx942": _CDNA, "gfx950": _CDNA}

DEFAULT_ARCH = "gfx942"


def family(arch: str) -> str | None:
    """The arch whose rows serve another one of its family, or None: "gfx940" -> "gfx942"."""
    return {"gfx94": "gfx942", "gfx95": "gfx950"}.get(arch[:5])
