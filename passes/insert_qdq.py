"""Store activations and weights as integers: QuantizeLinear and DequantizeLinear where the target computes in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from onnxcomp.compiler.equalization.per_tensor import channel_forms
from onnxcomp.compiler.evaluation.bounds import Bounds, check_bounds
from onnxcomp.compiler.mixed_precision.precision_search import quantize_mixed
from onnxcomp.compiler.mixed_precision.sensitivity_report import tell_harm
from onnxcomp.compiler.node_patterns import matching_nodes
from onnxcomp.compiler.options import in_range, option
from onnxcomp.compiler.passbase import Context, Need, Pass, PassLog, PassResult
from onnxcomp.compiler.quantization.formats import Formats, formats
from onnxcomp.compiler.quantization.fusion_report import tell_fusion
from onnxcomp.compiler.quantization.plan import Settings
from onnxcomp.compiler.quantization.quantizer import apply_plan, plan
from onnxcomp.compiler.quantization.ranges import range_rule
from onnxcomp.ir.convert import convert_opset
from onnxcomp.ir.files import check_finite
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import QUANTIZATION

__all__ = ["InsertQdq"]


MIXED_DB = 25.0
"""A bound on the output error that leaves nothing noticeable, for who had too great a loss."""


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Quantize activations and weights with calibrated ranges, placed so that the target computes in integers.

    Pairs of QuantizeLinear and DequantizeLinear stand where the target fuses them; each range is the one that disturbs the
    outputs least; weights are rounded layer by layer, each for the inputs that the quantized network gives it, and what
    the mean of an output moves goes into the bias.
    """

    name = "insert-qdq"
    exact = False
    stage = "quantization"
    data_free = True

    observer: Literal["output", "mse", "minmax", "percentile", "entropy", "moving-average"] = option(
        "output",
        "how a range is chosen: by the least effect on the network's outputs, the least error of the value itself (mse), "
        "its extremes (minmax), their moving average, a percentile, or the least change of its distribution (entropy)",
    )
    percentile: float = option(
        99.999, "share of values inside the range on either side, for observer=percentile"
    )
    rounding: Literal["gptq", "nearest"] = option(
        "gptq", "rounding of weights: errors propagated to the weights rounded later, or to the nearest"
    )
    bias_correction: bool = option(True, "put what the mean of every output moves into the bias")
    activations: Literal["auto", "uint8", "int8", "int8-symmetric", "uint16", "int16", "int16-symmetric"] = (
        option("auto", "how values are stored; auto takes what the target wants")
    )
    granularity: Literal["auto", "per-channel", "per-tensor"] = option("auto", "scales of weights")
    equalize: Literal["auto", "true", "false"] = option(
        "auto",
        "whether channels are scaled between layers so that one scale suits a whole weight; auto does so for "
        "granularity=per-tensor where it brings the outputs closer",
    )
    split_outliers: float = option(
        0.0,
        "share of channels added by splitting those with the largest weights in two (for per-tensor weights)",
    )
    scale: Literal["auto", "float", "pow2"] = option("auto", "whether scales are powers of two")
    bias: Literal["auto", "float", "int32"] = option("auto", "how biases are stored")
    edges: Literal["auto", "integers"] = option(
        "auto",
        "whether a small first layer stays float where rounding the network's input would make most of the error",
    )
    precision: Literal["int8", "mixed"] = option(
        "int8",
        "mixed keeps the nodes that do most harm out of int8 until min-sqnr, max-drop or agreement holds",
    )
    keep: Literal["auto", "float", "16-bit"] = option(
        "auto",
        "what they become (precision=mixed): values of 16 bits where the target takes them, else float",
    )
    min_sqnr: float | None = option(
        None, "least dB between outputs and their error (precision=mixed), on samples held back"
    )
    max_drop: float | None = option(
        None,
        "most percentage points lost, of accuracy where samples have labels, else of agreement (precision=mixed)",
    )
    agreement: float | None = option(
        None, "least percentage of samples that are decided as before (precision=mixed)"
    )
    nodes: tuple[str, ...] = option((), "only these nodes: globs, re:EXPRESSION or op:OPERATOR")
    op_types: tuple[str, ...] = option((), "only these operators")

    def check(self) -> None:
        """Raise UsageError where an option is out of range."""
        in_range(self.name, "percentile", self.percentile, 50, 100)
        in_range(self.name, "split-outliers", self.split_outliers, 0, 1)
        check_bounds(self.name, self._bounds(), mixed=self.precision == "mixed", keep=self.keep)

    def may_fall_short(self) -> bool:
        """Return whether a bound is given, which the model may turn out not to hold."""
        return self.precision == "mixed"

    def milder(self) -> tuple[str, ...]:
        """Return the pass with a bound that keeps sensitive nodes in float, where there is none."""
        if self.precision == "mixed":
            return ()
        return (str(replace(self, precision="mixed", min_sqnr=MIXED_DB)),)

    def needs(self) -> frozenset[Need]:
        """Return that samples and shapes are needed."""
        return frozenset({"calibration", "shapes"})

    def run(self, model: Model, context: Context) -> PassResult:
        """Quantize `model`."""
        log = PassLog()
        if any(node.op in QUANTIZATION for node in model.graph.nodes):
            log.note("the model holds QuantizeLinear or DequantizeLinear already and is left as it is")
            return log.result(model)
        check_finite(model)
        wanted = self._formats(context)
        model = _raised(model, wanted, log)
        settings = self._settings(model, context)
        model = channel_forms(model, self.equalize, self.split_outliers, wanted, settings, context, log)
        if self.precision == "mixed":
            result = quantize_mixed(model, wanted, self.keep, self._bounds(), settings, context, log)
        else:
            found = plan(model, wanted, settings, context, log)
            if found is None:
                return log.result(model)
            tell_harm(found, context, log, corrected=self.bias_correction)
            result = apply_plan(found, settings, context, log)
        if log.changes:
            tell_fusion(result, context, log)
        return log.result(result)

    def _bounds(self) -> Bounds:
        return Bounds(self.min_sqnr, self.max_drop, self.agreement)

    def _formats(self, context: Context) -> Formats:
        chosen = {name: getattr(self, name) for name in ("activations", "granularity", "scale", "bias")}
        return formats(context.target, chosen)

    def _settings(self, model: Model, context: Context) -> Settings:
        named = matching_nodes(model, self.nodes, "nodes") if self.nodes else None
        typed = (
            matching_nodes(model, [f"op:{op}" for op in self.op_types], "op-types") if self.op_types else None
        )

        def only(node: Node) -> str | None:
            if named is not None and node.name not in named:
                return "it is not among nodes"
            return "it is not among op-types" if typed is not None and node.name not in typed else None

        return Settings(
            range_rule(self.observer, self.percentile),
            self.rounding,
            self.bias_correction,
            self.edges,
            only,
            context.ranges,
        )


def _raised(model: Model, wanted: Formats, log: PassLog) -> Model:
    """Return `model` in the opset that its new types need."""
    if model.opset >= wanted.opset:
        return model
    log.note(f"raised from opset {model.opset} to {wanted.opset}, where integers of 16 bits begin")
    return convert_opset(model, wanted.opset)
