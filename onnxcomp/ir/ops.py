"""Tables about operators. Every list of operator names in onnxcomp stands here."""

from __future__ import annotations

__all__ = [
    "ABSORBED",
    "ACTIVATIONS",
    "CAN_PAD",
    "CHANNELS_FIRST",
    "COUNTED",
    "DATA_SIZED",
    "ELEMENTWISE",
    "FILLS_FIRST_INPUT",
    "FUSED_ACTIVATIONS",
    "HOMOGENEOUS",
    "INTEGER_KERNELS",
    "KEEPS_AXES",
    "KEEPS_SCALE",
    "KEEPS_SHAPE",
    "KEEPS_SIGN",
    "KEEPS_SIGN_OF_ALL",
    "KEEPS_SOFT",
    "LAYOUT",
    "LINEAR",
    "MIXES_AXIS",
    "MULTIPLIES",
    "NONDETERMINISTIC",
    "NONNEGATIVE",
    "NORMALISES_TAIL",
    "PICKING",
    "POOLING",
    "QUANTIZATION",
    "RECURRENT",
    "REDUCTIONS",
    "RESHAPING",
    "SATURATES",
    "SCALE_OR_SHIFT",
    "SELECTS_ROWS",
    "SINGLETON",
    "SIZED_BY_INPUTS",
    "SIZE_ARITHMETIC",
    "SIZE_QUESTIONS",
    "SIZE_READERS",
    "TYPED_BY_INPUT",
    "UNARY",
    "UNCOUNTED",
    "WEIGHT_INPUTS",
    "WRAPS_WEIGHTS",
]

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that contract an input axis with a weight."""

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
"""Operators that walk along a sequence with a hidden state."""

WEIGHTED = LINEAR | RECURRENT | {"Einsum"}
"""Operators that may contract channels with stored weights."""

COUNTED = LINEAR | {"LSTM", "GRU"}
"""Operators whose multiply-accumulates are counted."""

UNARY = frozenset(
    """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
    Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu""".split()
)
"""Operators of one data input that compute each element from that element alone."""

ACTIVATIONS = frozenset(
    """Celu Clip Elu Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Shrink Sigmoid Softplus Softsign Swish
    Tanh ThresholdedRelu""".split()
)
"""Operators that end a layer: what they make is what the layer says."""

HOMOGENEOUS = frozenset({"Identity", "LeakyRelu", "PRelu", "Relu"})
"""Elementwise operators whose result is `f` times as large where input 0 is, for every positive `f`."""

FUSED_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""Activations that onnxruntime makes a part of the convolution in front of them on the CPU."""

ELEMENTWISE = frozenset(
    """Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where
    Xor""".split()
)
"""Operators of several inputs that broadcast and compute each element from the elements that meet there."""

ABSORBED = FUSED_ACTIVATIONS | {"Add", "BatchNormalization", "HardSwish", "Mul"}
"""Operators that onnxruntime may make a part of the product in front of them."""

POOLING = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"}
)
"""Operators on `[N, C, ...]` that compute each channel from that channel alone."""

CHANNELS_FIRST = POOLING | {"BatchNormalization", "Conv", "ConvTranspose", "InstanceNormalization"}
"""Operators whose result has its channels along axis 1, by what they are."""

CAN_PAD = frozenset({"AveragePool", "Conv", "MaxPool"})
"""Operators that can do the padding of what they read themselves, by their attribute `pads`."""

REDUCTIONS = frozenset(
    """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare""".split()
)
"""Operators that reduce over axes given by an attribute or by input 1."""

MIXES_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "CumSum": None, "LpNormalization": -1}
"""Operators that mix elements along one axis only, with the default of their `axis` attribute; None where it is input 1."""

NORMALISES_TAIL = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Operators that normalise over all axes from their attribute `axis` (-1 by default) on."""

PICKING = frozenset({"ArgMax", "ArgMin"})
"""Operators whose result is the number of a position along their attribute `axis` (0 by default)."""

SIZE_ARITHMETIC = frozenset("Abs Add Div Max Min Mod Mul Neg Sub".split())
"""Operators that make sizes of sizes, element by element."""

SIZE_READERS = frozenset({("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Resize", 3)})
"""Operators and inputs that read a tensor of sizes as the size of what they make."""

WEIGHT_INPUTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "Gather": (0,),
}
"""Inputs that hold weights, where they are stored."""

WRAPS_WEIGHTS = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"})
"""Operators that may stand between a stored weight and the node that reads it."""

NONDETERMINISTIC = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators whose result may differ from run to run (Dropout only in training, but it is never worth evaluating)."""

QUANTIZATION = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
"""Operators that carry a quantization: their number and place is what a quantized model is."""

KEEPS_SCALE = frozenset(
    """DepthToSpace Expand Flatten Gather MaxPool ReduceMax ReduceMin Reshape Resize Slice Split Squeeze Tile
    Transpose Unsqueeze""".split()
)
"""Operators that onnxruntime runs on integers where what they read and what they make has the same scale and zero point."""

INTEGER_KERNELS = KEEPS_SCALE | frozenset(
    """Add ArgMax AveragePool Concat Conv ConvInteger Gemm GlobalAveragePool LeakyRelu MatMul MatMulInteger Mul Sigmoid
    Softmax Where""".split()
)
"""Operators that onnxruntime can run on integers on the CPU, if all is as it wants it."""

LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
"""Operators that onnxruntime adds to bring values into another layout."""

SIZES = frozenset({"Shape", "Size"})
"""Operators that return the sizes of what they read, not its numbers."""

UNCOUNTED = frozenset({"Cast", "CastLike", "Shape", "Size"})
"""Operators that convert numbers or ask for sizes, and so run neither on floats nor on integers."""

TYPED_BY_INPUT = {
    "DequantizeLinear": 1,
    "MatMulIntegerToFloat": 2,
    "QAttention": 3,
    "QGemm": 8,
    "QLinearConcat": 1,
    "QLinearConv": 7,
    "QLinearMatMul": 7,
    "QLinearWhere": 1,
    "QuantizeLinear": 2,
}
"""Quantized operators -> the input whose type output 0 has: the zero point of what they make, or a scale where that is float."""

DATA_SIZED = frozenset({"Compress", "NonZero", "Unique"})
"""Operators whose output size depends on the elements, but is bounded by the size of input 0 (times its rank)."""

SELECTS_ROWS = DATA_SIZED | {"NonMaxSuppression"}
"""Operators that select by what the elements are, so that nobody knows beforehand how many are left."""

SIZED_BY_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2),
    "Tile": (1,),
    "TopK": (1,),
}
"""Operators -> the inputs whose elements decide how large their output is."""

SIZE_QUESTIONS = frozenset({"Shape", "Size"})
"""Operators whose result follows from the sizes of what they read, not from the elements."""

FILLS_FIRST_INPUT = frozenset({"ScatterElements", "ScatterND", "TensorScatter"})
"""Operators whose result has the sizes of input 0, whatever else they read."""

SINGLETON = frozenset({"Concat", "Max", "Mean", "Min", "Sum"})
"""Operators of any number of inputs that hand a single input through."""

RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that keep the elements in order and only give them other axes."""

NONNEGATIVE = frozenset(
    "Abs Exp HardSigmoid ReduceL1 ReduceL2 ReduceSumSquare Relu Sigmoid Softmax Softplus".split()
)
"""Operators whose result is never negative, whatever they read."""

KEEPS_SIGN = RESHAPING | frozenset(
    """AveragePool DepthToSpace Dropout Expand Gather GlobalAveragePool GlobalMaxPool Identity MaxPool ReduceMax
    ReduceMean ReduceMin ReduceSum Slice SpaceToDepth Split Tile Transpose""".split()
)
"""Operators whose result has no negative element where input 0 has none."""

KEEPS_SIGN_OF_ALL = frozenset({"Add", "Concat", "Max", "Mean", "Min", "Mul", "Sum"})
"""Operators whose result has no negative element where no input has one."""

SATURATES = frozenset({"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh"})
"""Operators that no longer tell large inputs apart."""

KEEPS_SHAPE = frozenset(
    {"GroupNormalization", "InstanceNormalization", "MeanVarianceNormalization", "RMSNormalization"}
)
"""Operators whose first output has type and shape of input 0, whatever shape inference says."""

KEEPS_SOFT = UNARY | ELEMENTWISE | RESHAPING | {"Slice", "Transpose"}
"""Operators whose result can be cut wherever others have channels if the same is true of what they read."""

KEEPS_AXES = UNARY | ACTIVATIONS | ELEMENTWISE | {"Concat", "Dropout", "Pad", "Slice"}
"""Operators whose result has its axes where those of what they read are."""

SCALE_OR_SHIFT = frozenset({"Add", "Div", "Mul", "Sub"})
"""Arithmetic that scales or shifts one input where the other is a constant."""

MULTIPLIES = frozenset({"Div", "Mul", "PRelu"})
"""Elementwise operators that scale one input by another. Where any other one joins two values, it makes a residual stream."""
