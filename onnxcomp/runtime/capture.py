"""Streamed values and statistics of any value of a model, computed piece by piece in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import PreconditionError, UsageError
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import segment_bytes, with_outputs
from onnxcomp.ir.temporary import prefix
from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.session import Session, SessionError

if TYPE_CHECKING:
    from onnxcomp.runtime.data.samples import Samples

__all__ = ["Frontier", "Spool", "batch_size", "stream_values"]

Feed = dict[str, Array]

BATCH_BYTES = 48 * 2**20
"""Aim of one batch's largest activations: large enough for BLAS, small enough to forget."""


def batch_size(shapes: Mapping[str, tuple[int, ...]], names: Collection[str], most: int = 64) -> int:
    """Return how many samples to run at once, so that the values `names` (shapes of one sample) stay small."""
    largest = max((int(np.prod(shapes[n], dtype=np.int64)) * 4 for n in names if n in shapes), default=1)
    return int(max(1, min(most, BATCH_BYTES // (8 * max(1, largest)))))


class Spool:
    """Batches of named values in files of their own, so that memory does not grow with the number of samples.

    Use as a context manager: leaving it removes everything.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=prefix())
        self._index: dict[str, list[tuple[int, tuple[int, ...], np.dtype[Any]]]] = {}
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Spool:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *args: object) -> None:
        for file in self._files.values():
            file.close()
        self._folder.cleanup()

    def write(self, name: str, array: Array) -> None:
        """Append a batch of the value `name`.

        Raises:
            UsageError: if the disk with the temporary folder is full.
            PreconditionError: if the value is no tensor of numbers.
        """
        if not isinstance(array, np.ndarray) or array.dtype == object:
            raise PreconditionError(
                f"{name!r} is not a tensor of numbers, and it cannot be kept between runs; use scope=uniform repair=none"
            )
        entries = self._index.setdefault(name, [])
        if name not in self._files:
            path = Path(self._folder.name) / f"{len(self._index)}-{id(entries)}"
            self._files[name] = path.open("w+b", buffering=0)
        file = self._files[name]
        entries.append((file.seek(0, 2), array.shape, array.dtype))
        left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        try:
            while left:
                # A nearly full disk takes a part and says so only when asked for the rest.
                left = left[file.write(left) :]
        except OSError as problem:
            raise UsageError(
                f"calibration values cannot be kept in {tempfile.gettempdir()} ({problem.strerror}); "
                "point TMPDIR to a disk with room, or use fewer samples"
            ) from problem

    def fill(self, samples: Samples, size: int) -> int:
        """Write the graph inputs of all `samples` in batches of `size`; return how many batches there are."""
        count = 0
        for feed in samples.batches(size):
            for name, array in feed.items():
                self.write(name, array)
            count += 1
        return count

    def read(self, name: str, batch: int) -> Array:
        """Return batch number `batch` of the value `name`."""
        offset, shape, dtype = self._index[name][batch]
        array = np.empty(shape, dtype)
        file = self._files[name]
        file.seek(offset)
        file.readinto(array.reshape(-1).view(np.uint8).data)
        return array

    def kind(self, name: str) -> tuple[np.dtype[Any], int]:
        """Return dtype and number of axes of the value `name`."""
        _, shape, dtype = self._index[name][0]
        return dtype, len(shape)

    def sizes(self, name: str) -> tuple[int | None, ...]:
        """Return the sizes of the value `name`, None where they differ between batches; the first is left open."""
        shapes = [shape for _, shape, _ in self._index[name]]
        return tuple(
            size if axis and all(s[axis] == size for s in shapes) else None
            for axis, size in enumerate(shapes[0])
        )

    def drop(self, name: str) -> None:
        """Forget the value `name` and give its disk space back."""
        self._index.pop(name, None)
        file = self._files.pop(name, None)
        if file is not None:
            path = Path(file.name)
            file.close()
            path.unlink()

    def __contains__(self, name: str) -> bool:
        return name in self._index

    @property
    def names(self) -> list[str]:
        """The values held."""
        return list(self._index)


class Frontier:
    """The values of one network for all samples, advanced node by node and kept only while something still reads them.

    Only nodes that the wanted values depend on are run, each once. Weights of nodes that have not run yet may be
    changed between steps.
    """

    def __init__(
        self,
        model: Model,
        spool: Spool,
        batches: int,
        *,
        threads: int = 0,
        custom_op_libs: Sequence[str] = (),
    ) -> None:
        self.model = model
        self._spool = spool
        self._batches = batches
        self._threads = threads
        self._libraries = tuple(custom_op_libs)
        self._done: set[Node] = set()
        self._held: set[str] = set()
        self._makers = {v.name: n for n in model.graph.nodes for v in n.outputs if v.name}
        self._readers: dict[str, set[Node]] = {}
        for node in model.graph.nodes:
            for name in _reads(node):
                self._readers.setdefault(name, set()).add(node)

    def pending(self, wanted: Collection[str]) -> list[Node]:
        """Return the nodes that must run before `wanted` are known, in order."""
        needed: set[Node] = set()
        queue = [name for name in wanted if name not in self._spool]
        while queue:
            maker = self._makers.get(queue.pop())
            if maker is None or maker in needed or maker in self._done:
                continue
            needed.add(maker)
            queue.extend(name for name in _reads(maker) if name not in self._spool)
        return [node for node in self.model.graph.nodes if node in needed]

    def advance(self, wanted: Sequence[str]) -> Iterator[Feed]:
        """Compute `wanted` for every batch and yield them batch by batch; consume it to the end.

        Raises:
            ValueError: for a value that is no longer known: it was passed unasked, or nothing read it any more.
        """
        self._forget(wanted)
        nodes = self.pending(wanted)
        inside = set(nodes)
        made = [v.name for n in nodes for v in n.outputs if v.name]
        lost = [name for name in wanted if name not in self._spool and name not in made]
        if lost:
            raise ValueError(f"the value {lost[0]!r} has been passed; ask for it before what follows from it")
        later = {n: self._readers.get(n, set()) - inside - self._done for n in made}
        keep = [name for name in made if later[name] or name in wanted]
        fed = [n for n in dict.fromkeys(r for node in nodes for r in _reads(node)) if n in self._spool]
        outputs = list(dict.fromkeys([*keep, *(w for w in wanted if w in later)]))
        session = self._session(nodes, fed, outputs) if nodes else None
        for batch in range(self._batches):
            found = {}
            if session is not None:
                found = session.run({name: self._spool.read(name, batch) for name in fed}, outputs)
                for name in keep:
                    self._spool.write(name, found[name])
            yield {name: found[name] if name in found else self._spool.read(name, batch) for name in wanted}
        self._done |= inside

    def again(self, wanted: Sequence[str], start: int = 0, every: int = 1) -> Iterator[Feed]:
        """Yield the values of the last `advance` once more, without computing anything: each `every`th batch from `start`."""
        for batch in range(start, self._batches, every):
            yield {name: self._spool.read(name, batch) for name in wanted}

    def preview(self, model: Model, wanted: Sequence[str]) -> Iterator[Feed]:
        """Yield `wanted` for every batch as `model` would make them from the values known here; nothing is kept.

        `model` is this frontier's own with other weights: the same nodes by name, reading the same values. Nodes that only
        it has may stand in between, behind what has been passed.
        """
        inside = {node.name for node in self.pending(wanted)}
        known = {node.name for node in self.model.graph.nodes}
        nodes = [node for node in model.graph.nodes if node.name in inside or node.name not in known]
        fed = [n for n in dict.fromkeys(r for node in nodes for r in _reads(node)) if n in self._spool]
        made = [name for name in wanted if name not in self._spool]
        session = self._session(nodes, fed, made, model)
        for batch in range(self._batches):
            found = session.run({name: self._spool.read(name, batch) for name in fed}, made)
            yield {name: found[name] if name in found else self._spool.read(name, batch) for name in wanted}

    def live_before(self, node: Node) -> list[str]:
        """Return the values known before `node` runs that it, a later node or the graph's outputs still ask for."""
        graph = self.model.graph
        place = next(index for index, each in enumerate(graph.nodes) if each is node)
        later = graph.nodes[place:]
        made = {v.name for each in later for v in each.outputs}
        asked = [*(name for each in later for name in _reads(each)), *(v.name for v in graph.outputs)]
        stored = graph.constants
        return [name for name in dict.fromkeys(asked) if name not in made and name not in stored]

    def hold(self, name: str) -> None:
        """Keep the value `name` although nothing reads it any more, until `release`."""
        self._held.add(name)

    def release(self, name: str) -> None:
        """End a `hold`."""
        self._held.discard(name)

    def rewind(self, nodes: Collection[Node]) -> None:
        """Make `nodes` run again, with the weights they have now; their inputs must still be held."""
        self._done -= set(nodes)
        for node in nodes:
            for value in node.outputs:
                self._spool.drop(value.name)

    def _forget(self, wanted: Collection[str]) -> None:
        """Drop what nobody wants now or holds and no node that is still to run reads."""
        for name in self._spool.names:
            if (
                name not in wanted
                and name not in self._held
                and not self._readers.get(name, set()) - self._done
            ):
                self._spool.drop(name)

    def _session(
        self, nodes: list[Node], fed: list[str], outputs: list[str], model: Model | None = None
    ) -> Session:
        kinds = {name: self._spool.kind(name) for name in fed}
        types = {name: dtype for name, (dtype, _) in kinds.items()}
        ndims = {name: ndim for name, (_, ndim) in kinds.items()}

        def opened(sizes: Mapping[str, Sequence[int | None]] | None) -> Session:
            data = segment_bytes(model or self.model, nodes, types, outputs, ndims, sizes)
            return Session(data, threads=self._threads, custom_op_libs=self._libraries)

        try:
            return opened(None)
        except SessionError:
            # Of some operators onnxruntime infers a wrong shape where sizes are open (Attention with three axes).
            return opened({name: self._spool.sizes(name) for name in fed})


def _reads(node: Node) -> list[str]:
    return [*(v.name for v in node.inputs if v.name and not isinstance(v, Constant)), *node.captures]


def stream_values(
    model: Model,
    names: Sequence[str],
    samples: Samples,
    batch: int,
    *,
    threads: int = 0,
    custom_op_libs: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Iterator[Feed]:
    """Yield the values `names` for batch after batch of `samples`, from whole runs of `model`."""
    inputs = {v.name for v in model.graph.inputs}
    extended = with_outputs(model, [n for n in names if n not in inputs])
    session = Session(extended, threads=threads, custom_op_libs=custom_op_libs)
    done = 0
    for feed in samples.batches(batch):
        found = session.run(feed, [n for n in names if n not in inputs])
        found.update((n, feed[n]) for n in names if n in inputs)
        yield found
        # Values of two batches at once would double what is held.
        del found
        first = next(iter(feed.values()))
        done += len(first) if first.ndim else 1
        if progress:
            progress(done)
