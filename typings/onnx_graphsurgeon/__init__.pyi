"""The part of onnx-graphsurgeon that onnxcomp.ir leans on, typed (the package ships no types)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Tensor:
    name: str
    inputs: Any
    outputs: Any

class Variable(Tensor):
    dtype: Any
    shape: Any
    type: str
    def __init__(
        self, name: str, dtype: Any = ..., shape: Sequence[int | str | None] | None = ..., type: str = ...
    ) -> None: ...

class Constant(Tensor):
    def __init__(
        self, name: str, values: NDArray[Any], data_location: int | None = ..., export_dtype: Any = ...
    ) -> None: ...
    @property
    def values(self) -> NDArray[Any]: ...
    @values.setter
    def values(self, values: NDArray[Any]) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...

class Node:
    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: Any
    outputs: Any
    def __init__(
        self,
        op: str,
        name: str | None = ...,
        attrs: dict[str, Any] | None = ...,
        inputs: Sequence[Tensor] | None = ...,
        outputs: Sequence[Tensor] | None = ...,
        domain: str | None = ...,
    ) -> None: ...

class Graph:
    nodes: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    name: str
    doc_string: str
    opset: int
    def __init__(
        self,
        nodes: Sequence[Node] | None = ...,
        inputs: Sequence[Tensor] | None = ...,
        outputs: Sequence[Tensor] | None = ...,
        name: str | None = ...,
        doc_string: str | None = ...,
        opset: int | None = ...,
    ) -> None: ...
