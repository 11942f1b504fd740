"""Tensors between guard words inside one allocation, or each at the end of an allocation of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

SENTINEL = -1234567  # no id, no length: every int32 word that nobody wrote
_GUARD = 48  # words before, between and after tensors


class Spec(NamedTuple):
    """A tensor to be placed.

    Attributes:
        shape: one or two dimensions.
        dtype: int32 or int64.
        gap: elements that belong to nobody between two rows.
        shift: elements by which it is moved out of alignment.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    gap: int = 0
    shift: int = 0

    @property
    def stride(self) -> tuple[int, ...]:
        """In elements."""
        return (1,) if len(self.shape) == 1 else (self.shape[1] + self.gap, 1)


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
        begin: its first element's int32 word.
        shape: in elements.
        stride: in elements.
        dtype: int32 or int64.
    """

    begin: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, words: Tensor) -> Tensor:
        """The tensor, in an int32 tensor of words."""
        begin = self.begin * 4 // self.dtype.itemsize
        return words.view(self.dtype).as_strided(self.shape, self.stride, begin)


class Memory:
    """Tensors on a device, and their image on the host.

    Args:
        specs: the tensors by name, in the order in which they are to lie.
        device: where they are to lie.
        apart: each ends an allocation of its own; nothing lies between guard words then.

    Attributes:
        places: where each tensor lies.
        image: int32 words on the CPU, to be filled, then sent.
        host: the tensors in the image.
        tensors: the tensors on the device; they stay where they are.
    """

    def __init__(self, specs: Mapping[str, Spec], device: str, apart: bool = False) -> None:
        self.places: dict[str, Place] = {}
        end = _GUARD
        for name, spec in specs.items():
            size = spec.dtype.itemsize // 4
            self.places[name] = Place(end + spec.shift * size, spec.shape, spec.stride, spec.dtype)
            # the next begins at a multiple of 16 bytes, but for its shift
            end = (end + (spec.shift + spec.shape[0] * spec.stride[0]) * size + 3) // 4 * 4 + _GUARD
        self.image = torch.full((end,), SENTINEL, dtype=torch.int32)
        self.host = self.views(self.image)
        self._words = None if apart else torch.empty(end, dtype=torch.int32, device=device)
        if self._words is None:
            self.tensors = {name: _alone(place, device) for name, place in self.places.items()}
        else:
            self.tensors = self.views(self._words)
        self.send()

    def views(self, words: Tensor) -> dict[str, Tensor]:
        """The tensors in other words that are laid out like these."""
        return {name: place.view(words) for name, place in self.places.items()}

    def send(self) -> None:
        """Copies the image to the device."""
        if self._words is not None:
            self._words.copy_(self.image)
            return
        for name, tensor in self.tensors.items():
            tensor.copy_(self.host[name])

    def receive(self) -> Tensor:
        """Returns what the device has, as an image. Syncs."""
        if self._words is not None:
            return self._words.cpu()
        image = self.image.clone()
        for name, tensor in self.tensors.items():
            self.places[name].view(image).copy_(tensor)
        return image

    def differs(self, word: int, got: Tensor) -> str:
        """Says whose a word is, what another image has there and what this one has."""
        values, whose = [int(got[word]), int(self.image[word])], "before all tensors"
        names = [name for name, place in self.places.items() if place.begin <= word]
        if names:
            name = max(names, key=lambda name: self.places[name].begin)
            place = self.places[name]
            at = (word - place.begin) * 4 // place.dtype.itemsize
            index = divmod(at, max(place.stride[0], 1)) if len(place.shape) == 2 else (at,)
            whose = f"{name}{list(index)}"
            if all(i < n for i, n in zip(index, place.shape, strict=True)):
                values = [int(place.view(words)[index]) for words in (got, self.image)]
                values = [SENTINEL if value == sentinel(place.dtype) else value for value in values]
            else:
                whose += f", outside of its shape {list(place.shape)}"
        shown = ["what was there before" if value == SENTINEL else str(value) for value in values]
        return f"{whose} (word {word}): got {shown[0]}, want {shown[1]}"


def sentinel(dtype: torch.dtype) -> int:
    """What an entry of that dtype reads as where nobody wrote."""
    return int(torch.full((2,), SENTINEL, dtype=torch.int32).view(dtype)[0])


def _alone(place: Place, device: str) -> Tensor:
    """The tensor at the very end of an allocation, and at its begin."""
    sizes = zip(place.shape, place.stride, strict=True)
    extent = 1 + sum((n - 1) * s for n, s in sizes) if all(place.shape) else 0
    whole = torch.empty(extent, dtype=place.dtype, device=device)
    return whole.as_strided(place.shape, place.stride)


def guarded(rows: int, width: int, stride: int, dtype: torch.dtype, device: str) -> Tensor:
    """A ``[rows, width]`` view with that row stride, between guard words in a storage of SENTINELs."""
    return _guarded(Spec((rows, width), dtype, stride - width), device)


def guarded_1d(size: int, dtype: torch.dtype, device: str) -> Tensor:
    """A ``[size]`` view between guard words in a storage of SENTINELs."""
    return _guarded(Spec((size,), dtype), device)


def _guarded(spec: Spec, device: str) -> Tensor:
    x = Memory({"": spec}, device).tensors[""]
    whole(x).fill_(SENTINEL)
    return x


def whole(x: Tensor) -> Tensor:
    """The storage of which x is a view, guard words included."""
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def outside(x: Tensor) -> Tensor:
    """Which words of x's storage are not its own."""
    found = torch.ones_like(whole(x), dtype=torch.bool)
    torch.as_strided(found, x.shape, x.stride(), x.storage_offset()).fill_(False)
    return found
