"""Writes plans: the bytes that the engine loads. docs/plan_format.md describes them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from torch import Tensor

__all__ = ["BITS", "IMAGE", "NONE", "STATE", "VECTOR", "PlanWriter"]

VERSION = 1
MAGIC = b"\x89DDI\r\n\x1a\n"
ALIGNMENT = 64
NONE = -1
IMAGE, VECTOR, BITS, STATE = range(4)  # kinds of buffers

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
CODES = {
    "conv2d": 1,
    "block": 2,
    "dense_layer": 3,
    "gate": 4,
    "mean": 5,
    "linear": 6,
    "pool2d": 7,
    "activation": 8,
    "copy": 9,
    "open_all": 10,
    "conv2d_int8": 11,
    "block_int8": 12,
}


def _data(tensor: Tensor) -> bytes:
    """The elements of a tensor, little-endian."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().astype("<i2").tobytes()
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


class PlanWriter:
    """Collects the tables of a plan; `to_bytes` puts them together.

    Args:
        dtype: of the convolutions.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._blob = bytearray()
        self._buffers: list[tuple[int, int, int, int]] = []
        self._values: list[tuple[int, int, int]] = []
        self._constants: dict[tuple[int, bytes], tuple[int, tuple[int, int, int]]] = {}
        self._names: list[tuple[int, int]] = []

    def buffer(self, kind: int, channels: int, height: int = 1, width: int = 1) -> int:
        """A new buffer; its number."""
        self._buffers.append((kind, channels, height, width))
        return len(self._buffers) - 1

    def value(self, buffer: int, first: int = 0, channels: int | None = None) -> int:
        """Channels of a buffer, all by default; the value's number."""
        whole = self._buffers[buffer][1]
        self._values.append((buffer, first, whole - first if channels is None else channels))
        return len(self._values) - 1

    def buffer_of(self, value: int) -> tuple[int, int]:
        """Buffer and first channel of a value."""
        buffer, first, _ = self._values[value]
        return buffer, first

    def constant(self, tensor: Tensor | None) -> int:
        """The number of a constant, NONE for None. Equal ones are stored once."""
        if tensor is None:
            return NONE
        data = _data(tensor)
        key = (DTYPES[tensor.dtype], data)
        if key not in self._constants:
            entry = (DTYPES[tensor.dtype], self._append(data, ALIGNMENT), tensor.numel())
            self._constants[key] = (len(self._constants), entry)
        return self._constants[key][0]

    def name(self, text: str) -> int:
        data = text.encode()
        self._names.append((self._append(data, 1), len(data)))
        return len(self._names) - 1

    def _append(self, data: bytes, alignment: int) -> int:
        self._blob += bytes(-len(self._blob) % alignment)
        self._blob += data
        return len(self._blob) - len(data)

    def step(self, code: str, name: str, words: list[int]) -> list[int]:
        """The words of a step, as they stand in the graph."""
        return [CODES[code], self.name(name), len(words), *words]

    def to_bytes(
        self,
        metadata: str,
        input_value: int,
        trunk: list[list[int]],
        exits: list[tuple[str, int, list[list[int]], int]],
    ) -> bytes:
        """The plan.

        Args:
            metadata: JSON.
            input_value: the image.
            trunk: steps.
            exits: (name, steps of the trunk before it, its own steps, value of its logits).
        """
        meta = self.name(metadata)
        heads = [self.name(name) for name, *_ in exits]
        words: list[int] = []
        for table in (self._buffers, self._values, [entry for _, entry in self._constants.values()]):
            words += [len(table), *(number for row in table for number in row)]
        words += [len(self._names), *(number for row in self._names for number in row)]
        words += [meta, input_value]
        words += [len(trunk), *(number for step in trunk for number in step)]
        words.append(len(heads))
        for head, (_, position, steps, output) in zip(heads, exits, strict=True):
            words += [head, position, len(steps), *(n for step in steps for n in step), output]
        return _assemble(words, bytes(self._blob), DTYPES[self.dtype])


def _assemble(words: list[int], blob: bytes, dtype: int) -> bytes:
    graph = np.array(words, dtype="<i8").tobytes()
    offset = 64 + len(graph)
    offset += -offset % ALIGNMENT
    body = graph + bytes(offset - 64 - len(graph)) + blob
    head = MAGIC + struct.pack(
        "<IIQQQQI8x", VERSION, dtype, 64 + len(body), len(words), offset, len(blob), zlib.crc32(body)
    )
    return head + struct.pack("<I", zlib.crc32(head)) + body
