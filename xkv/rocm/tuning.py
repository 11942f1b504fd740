"""Tuning rows of gfx942 (MI300) and gfx950 (MI350).

Reasoned from sm90's rows: the same blocks; 304 (MI300X) and 256 (MI355X) compute units for sm90's 132, so
half the programs on each.
"""

from xkv.tuning import Tuning

_REASONED = "untuned, compile-checked"

_CDNA = (
    Tuning("page", 16, 256, 4, 4, 1, 16, _REASONED),
    Tuning("page", None, 512, 4, 4, 1, 256, _REASONED),
    Tuning("token", 16, 512, 4, 4, 1, 16, _REASONED),
    Tuning("token", None, 2048, 8, 4, 1, 256, _REASONED),
)

TUNING = {"gfx942": _CDNA, "gfx950": _CDNA}

DEFAULT_ARCH = "gfx942"


def family(arch: str) -> str | None:
    """The arch whose rows serve another one of its family, or None: "gfx940" -> "gfx942"."""
    return {"gfx94": "gfx942", "gfx95": "gfx950"}.get(arch[:5])
