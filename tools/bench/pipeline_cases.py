"""What `tools.bench.pipelines` tries: networks, and the pipelines of all lossy passes that are run on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tools.bench import cases

__all__ = ["FOLDED", "SUBJECTS", "USUAL", "Subject", "Try", "tries_for"]


@dataclass(frozen=True)
class Try:
    """A pipeline: its name, and what runs after the exact passes; `alone` are the tries that a pair of passes is to beat.

    Those are of one pass each, and leave as many MACs as the pair does.
    """

    name: str
    passes: str = ""
    alone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A network that is known by name, how many samples calibrate it, and the pipelines to try on it.

    `by_agreement` says that results are judged by their agreement with the original, though there are labels.
    """

    name: str
    network: cases.Network
    tries: tuple[Try, ...]
    samples: int = 512
    by_agreement: bool = False


FOLDED = Try("folded")
"""The exact passes alone."""

_INT8 = Try("int8", "insert-qdq")

_PASSES = {"prune": "prune-filters", "split": "split-svd", "depthwise": "substitute-depthwise"}


def _one(name: str, what: str, share: float) -> Try:
    """Return the try of one pass under a budget; `share` is of the network that the pipeline was given."""
    return Try(f"{name}-{what}-{share:g}", f"{_PASSES[name]}{{{what}={share:g}}}")


def _two(first: str, second: str, what: str, between: float, share: float) -> Try:
    """Return the try of two passes: the first goes as far as `between`, the second to `share`."""
    one, other = _one(first, what, between), _one(second, what, share)
    alone = tuple(_one(name, what, share).name for name in (first, second)) if what == "macs" else ()
    return Try(f"{first}-{between:g}+{other.name}", f"{one.passes},{other.passes}", alone)


def _with_int8(tries: tuple[Try, ...]) -> Iterator[Try]:
    """Yield each of `tries`, then the same with integers behind it."""
    for one in tries:
        yield one
        yield Try(f"{one.name}+int8", f"{one.passes},{_INT8.passes}")


def _orders(pairs: str, share: float, *between: float) -> tuple[Try, ...]:
    """Return each pass in `pairs`, as in `prune+split split+prune`, alone, then the pairs, all at one share of MACs.

    Of every pair there is one try for each share in `between`, to which the first of them goes.
    """
    two = [pair.partition("+")[::2] for pair in pairs.split()]
    return (
        *(_one(name, "macs", share) for name in dict.fromkeys(name for pair in two for name in pair)),
        *(_two(first, second, "macs", half, share) for first, second in two for half in between),
    )


_RESNET56 = (
    FOLDED,
    _INT8,
    *_orders("depthwise+split split+prune prune+split prune+depthwise", 0.45, 0.7),
    *_with_int8(
        (
            _one("prune", "latency", 0.6),
            _one("split", "latency", 0.75),
            _one("depthwise", "latency", 0.75),
            _two("prune", "split", "latency", 0.7, 0.5),
            _two("split", "prune", "latency", 0.8, 0.5),
        )
    ),
)

_LITE0 = (
    FOLDED,
    _INT8,
    *_with_int8(_orders("split+prune prune+split", 0.8, 0.9)),
    *_with_int8((_one("prune", "latency", 0.85), _one("split", "latency", 0.85))),
)

_EVERY = "depthwise+split split+depthwise split+prune prune+split depthwise+prune prune+depthwise"

USUAL = (
    FOLDED,
    _INT8,
    *_orders("split+prune prune+split depthwise+split", 0.5, 0.75),
    *_with_int8((_one("prune", "latency", 0.7), _one("split", "latency", 0.7))),
)
"""What is tried on a network of which nothing is known."""

_SMALL = (FOLDED, *_orders(_EVERY, 0.35, 0.85, 0.6))
_VGG9 = (
    *_SMALL,
    _INT8,
    *_with_int8(
        (
            _one("prune", "latency", 0.45),
            _one("split", "latency", 0.45),
            _two("split", "prune", "latency", 0.6, 0.45),
        )
    ),
)
_MLP = (FOLDED, *_with_int8(_orders("split+prune prune+split", 0.4, 0.7)))

SUBJECTS: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("resnet56", cases.NETWORKS["resnet56"], _RESNET56),
        Subject("lite0", cases.NETWORKS["lite0"], _LITE0, samples=128, by_agreement=True),
        Subject("resnet20", cases.NETWORKS["resnet20"], _SMALL),
        Subject("vgg9", cases.NETWORKS["vgg9"], _VGG9),
        Subject("digits-resnet", cases.NETWORKS["digits_resnet"], USUAL),
        Subject("digits-mlp", cases.NETWORKS["digits_mlp"], _MLP),
    )
}
"""The networks by name. On resnet20 and vgg9 all pairs of passes stand beside either alone at the same MACs."""


def tries_for(name: str) -> tuple[Try, ...]:
    """Return what is tried on the network called `name`, or on a file."""
    return SUBJECTS[name].tries if name in SUBJECTS else USUAL
