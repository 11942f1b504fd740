"""Tensors between guard words inside one allocation, or each at the end of an allocation of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .trial import SENTINEL

_GUARD = 24  # words between two tensors


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


class Layout:
    """Where tensors lie in one allocation.

    Attributes:
        places: by name.
        words: int32 words of the allocation.
    """

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.words = _GUARD

    def add(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, gap: int = 0) -> None:
        """Puts a tensor behind the others.

        Args:
            name: its name.
            shape: one or two dimensions.
            dtype: int32 or int64.
            gap: elements that belong to nobody between two rows, and words by which it is moved out of
                alignment.
        """
        size = dtype.itemsize // 4
        stride = (1,) if len(shape) == 1 else (shape[1] + gap, 1)
        begin = self.words + gap * size
        self.places[name] = Place(begin, shape, stride, dtype)
        room = shape[0] * stride[0] * size
        self.words = (begin + room) // 2 * 2 + _GUARD  # even, for what comes next may be int64


class Memory:
    """The tensors of a layout on a device, and their image on the host.

    Attributes:
        image: int32 words on the CPU, to be filled, then sent.
        host: the tensors in the image.
        tensors: the tensors on the device; they stay where they are.

    Args:
        layout: where the tensors lie.
        device: where they are to lie.
        apart: each ends an allocation of its own; nothing lies between guard words then.
    """

    def __init__(self, layout: Layout, device: str, apart: bool = False) -> None:
        self.places, self._apart = layout.places, apart
        self.image = torch.full((layout.words,), SENTINEL, dtype=torch.int32)
        self.host = self.views(self.image)
        if apart:
            self.tensors = {name: _alone(place, device) for name, place in self.places.items()}
        else:
            self._words = torch.empty(layout.words, dtype=torch.int32, device=device)
            self.tensors = self.views(self._words)
        self.send()

    def views(self, words: Tensor) -> dict[str, Tensor]:
        """The tensors in other words of this layout."""
        return {name: place.view(words) for name, place in self.places.items()}

    def send(self) -> None:
        """Copies the image to the device."""
        if not self._apart:
            self._words.copy_(self.image)
            return
        for name, tensor in self.tensors.items():
            tensor.copy_(self.host[name])

    def receive(self) -> Tensor:
        """Returns what the device has, as an image. Syncs."""
        if not self._apart:
            return self._words.cpu()
        image = self.image.clone()
        for name, tensor in self.tensors.items():
            self.places[name].view(image).copy_(tensor)
        return image

    def named(self, word: int) -> str:
        """Says whose an image's word is."""
        before = [(place.begin, name) for name, place in self.places.items() if place.begin <= word]
        if not before:
            return f"word {word}, before all tensors"
        begin, name = max(before)
        place = self.places[name]
        at = (word - begin) * 4 // place.dtype.itemsize
        index: Iterable[int] = divmod(at, place.stride[0]) if len(place.shape) == 2 else (at,)
        index = list(index)
        inside = all(i < n for i, n in zip(index, place.shape, strict=True))
        return f"{name}{index}" + ("" if inside else f", outside of its shape {list(place.shape)}")


def _alone(place: Place, device: str) -> Tensor:
    """The tensor at the very end of an allocation, and at its begin."""
    sizes = zip(place.shape, place.stride, strict=True)
    extent = 1 + sum((n - 1) * s for n, s in sizes) if all(place.shape) else 0
    whole = torch.empty(extent, dtype=place.dtype, device=device)
    return whole.as_strided(place.shape, place.stride)
