"""The options of a run, declared once.

The command line, the config file, its template and the Python API derive what they know of an option from this table: its
name, type, help, default, whether a config file may set it, and whether it is a matter of trust. The module imports nothing
that takes long: the command line reads it before it knows what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxcomp.errors import UsageError, hint

__all__ = ["METRICS", "MODEL_OPTIONS", "RUN_OPTIONS", "Kind", "RunOption", "keywords", "run_option"]

Kind: TypeAlias = Literal[
    "text",  # one line
    "data",  # a source of samples: a path, random[:N], none, module:function
    "count",  # a whole number
    "number",
    "flag",  # given or not
    "switch",  # --x or --no-x
    "choice",  # one of `choices`
    "texts",  # any number of lines
    "files",  # any number of files
    "file",
    "sizes",  # sizes by input name
    "preprocess",  # a table, or a file with one
]
"""The type of an option; each reader of options has one rule per kind."""

METRICS = ("top1", "agreement", "mse", "sqnr")
"""What a result may be judged by."""


@dataclass(frozen=True)
class RunOption:
    """One option of a run.

    Attributes:
        name: the keyword in Python, and the field of `Request`.
        kind: its type.
        help: what the command line says of it.
        metavar: what stands for its value in the help.
        default: the value where nothing is said.
        word: its name on the command line and in a config file, where that is not `name` with dashes.
        short: a letter for the command line.
        least: the lowest whole number that is accepted.
        choices: the words of a `choice`.
        config: an example of its value in the config template, as TOML; None where a config file may not set it.
        note: what the template says of it.
        trusted: whether it decides about running code, following links or replacing files. A config file comes along with
            a model, so that it never sets such an option.
        scope: what it is a field of. `request`: of a Request, and so a keyword in Python; `pipeline`: text that a pipeline
            is made of; `command`: it says how the command itself behaves.
    """

    name: str
    kind: Kind
    help: str
    metavar: str | None = None
    default: str | int | bool | None = None
    word: str = ""
    short: str = ""
    least: int | None = None
    choices: tuple[str, ...] = ()
    config: str | None = None
    note: str = ""
    trusted: bool = False
    scope: Literal["request", "pipeline", "command"] = "request"

    @property
    def key(self) -> str:
        """The name in words, on the command line and in a config file."""
        return self.word or self.name.replace("_", "-")


RUN_OPTIONS = (
    RunOption(
        "passes",
        "text",
        "Passes in order, such as 'fold-batchnorm,prune-filters{macs=0.5}'.",
        "TEXT",
        config='"fold-constants,fold-batchnorm,remove-dead"',
        scope="pipeline",
    ),
    RunOption(
        "preset",
        "text",
        "A pipeline by name; without passes or preset: exact.",
        "NAME",
        config='"exact"',
        note="or passes, never both",
        scope="pipeline",
    ),
    RunOption(
        "target",
        "text",
        "What OUT is made for; see `targets`. Default: ort-cpu.",
        "NAME",
        default="ort-cpu",
        config='"ort-cpu"',
        note="what the result is made for; see `onnxcomp targets`",
    ),
    RunOption(
        "calibration",
        "data",
        ".npz, folder or glob, module:function, random[:N] for noise, or none.",
        "DATA",
        config='"calibration.npz"',
        note=".npz, folder or glob of .npz or images, module:function, random[:N], none",
    ),
    RunOption(
        "samples",
        "count",
        "Use the first N calibration samples.",
        "N",
        least=1,
        config="512",
        note="use the first so many calibration samples",
    ),
    RunOption(
        "evaluation",
        "data",
        "Data that judges the result, with labels for top1.",
        "DATA",
        config='"evaluation.npz"',
        note="the same; with an int64 array `labels` for the metric top1",
    ),
    RunOption(
        "metric",
        "choice",
        "What the result is judged by; default: top1 with labels, else agreement, else sqnr.",
        choices=METRICS,
        config='"top1"',
        note=" | ".join(METRICS),
    ),
    RunOption(
        "max_drop",
        "number",
        "Points of top1 or agreement that may be lost; else exit 4.",
        "X",
        config="1.0",
        note="percentage points of top1 or agreement",
    ),
    RunOption(
        "min_sqnr",
        "number",
        "Decibels the worst output must reach; else exit 4.",
        "DB",
        config="20.0",
        note="decibels of the worst output",
    ),
    RunOption(
        "require_smaller", "switch", "Exit 4 unless OUT is smaller than IN.", default=False, config="true"
    ),
    RunOption(
        "require_speedup",
        "number",
        "Times as fast as IN that OUT must be, at batch 1 on one thread; else exit 4.",
        "X",
        config="1.2",
        note="times as fast as the original, batch 1, one thread",
    ),
    RunOption(
        "exclude",
        "texts",
        "Leave nodes alone: a glob, re:EXPRESSION or op:OPERATOR.",
        "PATTERN",
        config='["head/*", "re:^stem", "op:Softmax"]',
    ),
    RunOption(
        "set_shape",
        "sizes",
        "Fix the sizes of an input, in OUT too: x=1,3,224,224 (* leaves an axis).",
        "NAME=SIZES",
        config="input = [1, 3, 224, 224]",
        note='"*" leaves an axis as it is',
    ),
    RunOption(
        "decision",
        "text",
        "The graph output on which classes are chosen.",
        "NAME",
        word="output",
        config='"logits"',
        note="the output on which classes are chosen",
    ),
    RunOption("opset", "count", "Opset version of OUT.", "N", config="17"),
    RunOption("ir_version", "count", "IR version of OUT.", "N", config="8"),
    RunOption("config", "file", "TOML file with these options; see `config init`.", "FILE", scope="command"),
    RunOption("seed", "count", "Of every random choice.", "N", default=0, least=0, config="0"),
    RunOption(
        "reports",
        "files",
        "Write everything about the run as JSON.",
        "R.json",
        word="report",
        config='["run.json"]',
    ),
    RunOption(
        "ranges",
        "file",
        "Ranges of values for insert-qdq, or the report of an earlier run that has them; others are observed.",
        "F.json",
        config='"earlier.json"',
        note="take ranges of values from the report of an earlier run",
    ),
    RunOption(
        "timings",
        "file",
        "Replay the latencies in the report of an earlier run; others are measured (with --strict: exit 2).",
        "F.json",
        config='"earlier.json"',
        note="replay the latencies in the report of an earlier run",
    ),
    RunOption(
        "preprocess",
        "preprocess",
        "Preprocess table (TOML or JSON) that wins over config and data; none feeds data as it is.",
        "FILE|none",
        config="""\
layout = "NHWC->NCHW"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
size = [224, 224]
channels = "RGB\"""",
    ),
    RunOption("allow_code", "flag", "Let module:function data run Python code.", default=False, trusted=True),
    RunOption(
        "custom_op_libs",
        "texts",
        "Shared library with operators of the model; its code runs.",
        "FILE",
        word="custom-op-lib",
        trusted=True,
    ),
    RunOption(
        "allow_links",
        "flag",
        "Follow links to external data (model-hub caches).",
        default=False,
        trusted=True,
    ),
    RunOption(
        "threads",
        "count",
        "Of onnxruntime; 0 = all cores.",
        default=0,
        least=0,
        config="0",
        note="0 = all cores",
    ),
    RunOption(
        "allow_noop",
        "flag",
        "Where nothing changed, write a copy instead of exit 3.",
        default=False,
        config="false",
    ),
    RunOption(
        "accept_ruin",
        "flag",
        "Write a ruined result too (agreement under 80 %, SQNR under 10 dB, NaN); without it: exit 4.",
        default=False,
        config="false",
    ),
    RunOption(
        "strict",
        "flag",
        "Stop at the first pass that fails verification, or timing that is missing.",
        default=False,
        config="false",
    ),
    RunOption(
        "dry_run",
        "flag",
        "Check everything, show what would run, write nothing.",
        default=False,
        scope="command",
    ),
    RunOption("force", "flag", "Replace existing output files.", default=False, trusted=True),
    RunOption(
        "verbose", "flag", "Report every change and every skip.", default=False, short="v", scope="command"
    ),
)
"""All options of `onnxcomp optimize`, in the order of its help. Other commands take some of them."""

MODEL_OPTIONS = "preprocess samples exclude set_shape decision seed threads custom_op_libs allow_code allow_links force".split()
"""Names of those that say how a model and samples are read, and what of the model is left alone."""

_BY_NAME = {option.name: option for option in RUN_OPTIONS}


def run_option(name: str) -> RunOption:
    """Return the option called `name`.

    Raises:
        UsageError: where there is none, with the nearest.
    """
    if name not in _BY_NAME:
        raise UsageError(f"a run has no option '{name}'{hint(name, _BY_NAME)}")
    return _BY_NAME[name]


def keywords() -> tuple[str, ...]:
    """Return the names of the options that are fields of a Request, and so keywords in Python."""
    return tuple(option.name for option in RUN_OPTIONS if option.scope == "request")
