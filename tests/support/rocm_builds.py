"""torch's builds for ROCm, by version and by the names that PyTorch and AMD give them; as data.

Every version from 2.9 on that the package index had on 2026-11-29, with the Triton that it pins there. Local
versions are PyTorch's own ("rocm7.2") and AMD's (of its wheels, its images, its later indexes and their
nightly builds), as users' lock files and logs have them; that of 2.15.0 is assumed to be as 2.14.1's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

TRITONS = {
    "2.9.0": "3.5.0", "2.9.1": "3.5.1", "2.10.0": "3.6.0", "2.11.0": "3.6.0", "2.12.0": "3.7.0",
    "2.12.1": "3.7.1", "2.13.0": "3.7.1", "2.14.0": "3.8.0", "2.14.1": "3.8.0", "2.15.0": "3.9.0",
}  # fmt: skip
LOCALS = {
    "2.9.0": ("rocm6.3", "rocm6.4"),
    "2.9.1": ("rocm6.4", "rocm7.2.0.lw.git7e1940d4", "rocm7.2.0.git7e1940d4", "rocm7.2.1.lw.gitff65f5bc"),
    "2.10.0": ("rocm7.0", "rocm7.1", "rocm7.2.0.lw.gitb6ee5fde", "rocm7.2.2.lw.git23d69b29", "rocm7.13.0"),
    "2.11.0": ("rocm7.1", "rocm7.2", "rocm7.2.4.lw.git5fbd98f3", "rocm7.14.0", "rocm7.14.0a20260625"),
    "2.12.0": ("rocm7.2", "rocm7.14.0", "rocm7.15.0a20260727"),
    "2.12.1": ("rocm7.2",),
    "2.13.0": ("rocm7.2", "rocm10.0.0"),
    "2.14.0": ("rocm7.2", "rocm10.1.0"),
    "2.14.1": ("rocm7.2", "rocm7.14"),
    "2.15.0": ("rocm7.2",),
}
# The distributions that have the module triton. AMD's "triton" has a local version of its own, as its torch
# has. Which name a torch asks for has changed with its version and publisher: each is tried with each.
NAMES = ("triton", "pytorch-triton-rocm", "triton-rocm")


class Build(NamedTuple):
    """A node's torch, and the triton that it requires."""

    torch: str
    name: str
    triton: str

    @property
    def packages(self) -> list[str]:
        """As requirements, torch first."""
        return [f"torch=={self.torch}", f"{self.name}=={self.triton}"]

    def __str__(self) -> str:
        return f"{self.torch}, {self.name} {self.triton}"


def builds() -> Iterator[Build]:
    """Every version, by each of its names, with each name of triton."""
    for version, local_versions in LOCALS.items():
        for local in local_versions:
            own = local.replace(".lw.", ".") if ".git" in local else ""
            for name in NAMES:
                triton = TRITONS[version] + (f"+{own}" if own and name == "triton" else "")
                yield Build(f"{version}+{local}", name, triton)
