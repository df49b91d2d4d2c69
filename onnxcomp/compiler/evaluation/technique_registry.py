"""Which sensitivity techniques there are: ours by a table of strings, those of installed packages by entry point.

Third parties declare, in their pyproject.toml,

    [project.entry-points."onnxcomp.techniques"]
    my-technique = "package.module:MyTechnique"
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from onnxcomp.compiler.registry import Offer, Registry, offered
from onnxcomp.errors import UsageError

__all__ = ["GROUP", "TECHNIQUES", "make_technique", "technique_registry"]

GROUP = "onnxcomp.techniques"
"""The entry-point group in which other packages offer techniques."""

BUILTIN = {
    "prune": "onnxcomp.compiler.channel_pruning.technique:PruneChannels",
    "quantize": "onnxcomp.compiler.mixed_precision.technique:QuantizeNodes",
}
"""Where each built-in technique is defined, by name. Nothing is imported before it is asked for."""


def _flaw(name: str, kind: object) -> str:
    """Return what makes `kind` no technique, or "" where nothing does."""
    from onnxcomp.compiler.evaluation.technique import Technique

    if not (isinstance(kind, type) and issubclass(kind, Technique)):
        return "it is not a subclass of Technique"
    if inspect.isabstract(kind):
        return "it has no candidates method"
    if "__dataclass_params__" not in vars(kind) or not vars(kind)["__dataclass_params__"].frozen:
        return "it is not a @dataclass(frozen=True)"
    if not isinstance(getattr(kind, "name", None), str):
        return "it has no name"
    return next(
        (
            f"its option '{option.name}' has no default"
            for option in dataclasses.fields(kind)
            if option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING
        ),
        "",
    )


TECHNIQUES = Offer("technique", GROUP, _flaw)
"""What the registry holds."""


def technique_registry() -> Registry:
    """Return our own techniques and those of installed packages; imports none of them."""
    return Registry(offered(BUILTIN, TECHNIQUES), TECHNIQUES)


def make_technique(name: str, options: dict[str, Any], registry: Registry | None = None) -> Any:
    """Return the `Technique` called `name` with `options` by field; those that are None keep the default.

    Raises:
        UsageError: for an unknown name, a name of two owners, a broken plug-in, an option that the technique has not.
    """
    kind = (registry or technique_registry()).resolve(name)
    known = {option.name for option in dataclasses.fields(kind)}
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in known:
            raise UsageError(f"--{option} is no option of --technique {name}; leave it out")
    return kind(**given)
