"""Model files: reading what nobody vouches for, writing what is whole or not there at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import ModelProto, TensorProto

from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.atomic import check_output, replacing
from onnxcomp.ir.convert import minimum_ir_version, settle_opset
from onnxcomp.ir.external import (
    DataWriter,
    ExternalReader,
    data_files,
    inline_nested,
    open_regular,
    why_unsafe,
)
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import WEIGHTED
from onnxcomp.ir.proto import from_proto, stored, to_proto
from onnxcomp.ir.scopes import nested_tensors
from onnxcomp.ir.tensors import read_tensor

__all__ = [
    "EXTERNAL_THRESHOLD",
    "FileDigests",
    "adopt",
    "check_finite",
    "from_bytes",
    "load",
    "save",
    "sha256_of",
]

_PROTOBUF_LIMIT = 2**31 - 1

EXTERNAL_THRESHOLD = 2**31 - 2**20
"""Larger models keep their weights in a second file: a protobuf message ends at 2 GB, and some readers count less."""

_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'",
    b"PK\x03\x04": "a zip archive (a PyTorch or Keras file?); export the model to ONNX first",
    b"\x89HDF": "an HDF5 file; export the model to ONNX first",
}
_FOREIGN_AT_4 = {
    b"TFL3": "a TensorFlow Lite file; convert the model to ONNX first",
    b"ORTM": "an ORT-format file; give the ONNX file it was made from",
}


# --- reading ---------------------------------------------------------------------------------------------------------
def load(path: str | Path, *, allow_links: bool = False, convert: bool = True) -> Model:
    """Return the Model in the file `path`, in opset 13 or later; the file is only read.

    External data is mapped, not copied, and only from files below the folder of `path`; links among them need
    `allow_links`. Older opsets are converted unless `convert` is False, and all that had to be mended is in `notes`.

    Raises:
        ModelError: for everything that is not a sound model, in one line.
    """
    path = Path(path)
    proto = _parse(_read(path), repr(str(path)))
    reader = ExternalReader(path.parent, allow_links=allow_links)
    model = _adopt(proto, reader, repr(str(path)))
    if convert:
        model = settle_opset(model)
    model.sources = (path.absolute(), *(file.absolute() for file in reader.files))
    return model


def from_bytes(data: bytes) -> Model:
    """Return the Model of a serialized ModelProto that holds all its data itself; checked and converted as by `load`.

    Raises:
        ModelError: for everything that is not a sound model, in one line.
    """
    return adopt(_parse(data, "the data"))


def adopt(proto: ModelProto) -> Model:
    """Return the Model of `proto`, which is left as it is; checked and converted as by `load`.

    Raises:
        ModelError: for everything that is not a sound model, external data included, in one line.
    """
    return settle_opset(_adopt(proto, None, "the model"))


def _read(path: Path) -> bytes:
    with open_regular(path, "the model") as stream:
        if os.fstat(stream.fileno()).st_size > _PROTOBUF_LIMIT:
            raise ModelError(f"{str(path)!r} is larger than 2 GB; store its weights as external data")
        return stream.read()


def _parse(data: bytes, where: str) -> ModelProto:
    if not data:
        raise ModelError(f"{where} is empty")
    for foreign, what in _FOREIGN.items():
        if data.startswith(foreign):
            raise ModelError(f"{where} is {what}")
    if data[4:8] in _FOREIGN_AT_4:
        raise ModelError(f"{where} is {_FOREIGN_AT_4[data[4:8]]}")
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except DecodeError as problem:
        raise ModelError(f"{where} is not an ONNX model: {_why_undecodable(data)}") from problem
    if not proto.HasField("graph"):
        raise ModelError(f"{where} is not an ONNX model: it holds no graph")
    return proto


def _why_undecodable(data: bytes) -> str:
    head = data[:256]
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "it is a text file"
    return "the file is damaged or cut short; fetch or export it again"


def _adopt(proto: ModelProto, reader: ExternalReader | None, where: str) -> Model:
    _check_text(proto, where)
    if not proto.ir_version:
        raise ModelError(f"{where} has no ir_version; it is damaged, export it again")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{where} has IR version {proto.ir_version}; the installed onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}; upgrade onnx"
        )
    if reader is not None:
        inline_nested(proto, reader)
    for tensor in nested_tensors(proto):
        read_tensor(tensor)
    model = from_proto(proto, reader)
    if reader is not None:
        reader.check_overlaps()
    if not model.graph.nodes:
        raise ModelError(f"{where} has a graph without nodes; there is nothing to optimize")
    return model


def _check_text(message: Message, where: str) -> None:
    """Refuse text that is not UTF-8: protobuf hands it over as bytes, which would surface anywhere."""
    for field, value in (
        message.ListFields() if not isinstance(message, TensorProto) else _tensor_text(message)
    ):
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else value
            if not all(isinstance(text, str) for text in texts):
                raise ModelError(f"{where} is damaged: {field.full_name} holds bytes that are not text")
        elif field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                _check_text(inner, where)


def _tensor_text(tensor: TensorProto) -> Iterator[tuple[Any, Any]]:
    # ListFields would copy the data out of the tensor.
    for name in ("name", "doc_string", "external_data", "metadata_props"):
        yield tensor.DESCRIPTOR.fields_by_name[name], getattr(tensor, name)


def check_finite(model: Model) -> None:
    """Make sure that no stored tensor of `model` holds NaN, and no weight Inf; for passes that compute on weights.

    Infinity in a tensor that no operator multiplies with is what it says: a mask adds it to the scores of attention.

    Raises:
        ModelError: naming the initializer.
    """
    for constant in stored(model.graph):
        values = constant.values
        if values.dtype.kind not in "fcV" or np.isfinite(values).all():
            continue
        broken = bool(np.isnan(values).any())
        if broken or any(node.is_op(*WEIGHTED, "BatchNormalization") for node in constant.consumers):
            kind = "NaN" if broken else "Inf"
            raise ModelError(
                f"the initializer {constant.name!r} holds {kind}; mend or retrain the model first"
            )


# --- writing ---------------------------------------------------------------------------------------------------------
def save(
    model: Model, path: str | Path, *, external_threshold: int = EXTERNAL_THRESHOLD, force: bool = False
) -> list[Path]:
    """Write `model` to `path` and return the files written: the model, then its external data where there is any.

    The files appear whole or not at all, whatever happens. A model of more than `external_threshold` bytes keeps its
    weights in `<path>.data`, written tensor by tensor. Files that `model` was read from are never replaced, other
    files only with `force`. Equal models give equal bytes.

    Raises:
        UsageError: where `path` cannot be written; nothing is left behind.
        ModelError: where attributes and functions, which have no external data, exceed 2 GB.
    """
    path = Path(path)
    check_output(path, force=force, sources=model.sources)
    data_path = path.with_name(f"{path.name}.data")
    writer = DataWriter(data_path.name)
    content = _serialize(_proto(model, writer))
    if writer.size + len(content) <= external_threshold:
        content = _serialize(_proto(model))
        with replacing(path) as (stream,):
            stream.write(content)
        return [path]
    if reason := why_unsafe(data_path.name):
        raise UsageError(f"{path.name!r} cannot name external data, {reason}; choose another name")
    check_output(data_path, force=force, sources=model.sources)
    # The data first: a model without its weights is worse than weights that nothing reads yet.
    with replacing(data_path, path) as (data, stream):
        writer.write(data)
        stream.write(content)
    return [path, data_path]


def _proto(model: Model, writer: DataWriter | None = None) -> ModelProto:
    proto = to_proto(model, write=writer.proto if writer is not None else None)
    proto.ir_version = max(model.ir_version, minimum_ir_version(model))
    if writer is not None:
        writer.move_out(proto)
    return proto


def _serialize(proto: ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as problem:
        raise ModelError(
            "attributes and functions of the model hold more than 2 GB; no file can"
        ) from problem


# --- digests ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FileDigests:
    """SHA-256 of a model file and, by location, of its external data; `bytes` is the size of all of them."""

    sha256: str
    external: dict[str, str]
    bytes: int


def sha256_of(path: str | Path, *, allow_links: bool = False) -> FileDigests:
    """Return the digests of the model file `path` and of all the files its weights lie in.

    Raises:
        ModelError: where `path` is no model, or its external data is missing or unsafe.
    """
    path = Path(path)
    data = _read(path)
    proto = _parse(data, repr(str(path)))
    size = len(data)
    external: dict[str, str] = {}
    for location, file in data_files(proto, path.parent, allow_links=allow_links).items():
        with open_regular(file, f"the external data {location!r}", allow_links=allow_links) as stream:
            external[location] = _digest(stream)
            size += os.fstat(stream.fileno()).st_size
    return FileDigests(hashlib.sha256(data).hexdigest(), external, size)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := stream.read(2**20):
        digest.update(piece)
    return digest.hexdigest()
