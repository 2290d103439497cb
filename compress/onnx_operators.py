"""ONNX's operators as functions of PyTorch tensors: those that float and Q/DQ files of image networks are made of.

Each follows the operator's text in ONNX's Operators.md, opsets 13 to 20. Tensors of shapes and axes are int64 on the
CPU, whatever device the others are on.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tlc.runtime.errors import TlcError

Attributes = Mapping[str, Any]
Operator: TypeAlias = Callable[..., Any]
"""(attributes, *inputs) -> Tensor, or a sequence of them; an input that is left out is None."""

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _refused(what: str) -> TlcError:
    return TlcError(f"{what} has no gradient here", hint="Set quantize.qat_epochs = 0.")


def _sides(attributes: Attributes, dims: int) -> tuple[list[int], list[int]]:
    """Return the padding in front of and behind each spatial dimension."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _refused("Padding by auto_pad")
    pads = list(attributes.get("pads") or [0] * 2 * dims)
    return pads[:dims], pads[dims:]


def _padded(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float) -> Tensor:
    """Return x with its last dimensions padded; torch wants the last one first."""
    flat = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return F.pad(x, flat, value=value)


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dims = weight.ndim - 2
    begin, end = _sides(attributes, dims)
    padding = begin
    if begin != end:
        x, padding = _padded(x, begin, end, 0.0), [0] * dims
    result: Tensor = _CONVOLUTIONS[dims](
        x,
        weight,
        bias,
        stride=attributes.get("strides", [1] * dims),
        padding=padding,
        dilation=attributes.get("dilations", [1] * dims),
        groups=attributes.get("group", 1),
    )
    return result


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.mT if attributes.get("transA", 0) else a
    b = b if attributes.get("transB", 0) else b.mT
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    product: Tensor = F.linear(a, b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    dims = len(kernel)
    begin, end = _sides(attributes, dims)
    padding = begin
    if begin != end:
        x, padding = _padded(x, begin, end, -torch.inf), [0] * dims
    result: Tensor = _MAX_POOLS[dims](
        x,
        kernel,
        stride=attributes.get("strides", [1] * dims),
        padding=padding,
        dilation=attributes.get("dilations", [1] * dims),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return result


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    dims = len(kernel)
    begin, end = _sides(attributes, dims)
    counted = bool(attributes.get("count_include_pad", 0))
    if dims != 2 or any(dilation != 1 for dilation in attributes.get("dilations", ())):
        raise _refused("AveragePool that is dilated, or not of two dimensions,")
    padding = begin
    if begin != end:
        if not counted:
            raise _refused("AveragePool with uneven padding that is not counted")
        x, padding = _padded(x, begin, end, 0.0), [0, 0]
    return F.avg_pool2d(
        x,
        kernel,
        stride=attributes.get("strides", [1, 1]),
        padding=padding,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=counted,
    )


def _batch_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    if scale.shape != x.shape[axis:]:
        raise _refused("LayerNormalization with a scale that is broadcast")
    return F.layer_norm(x, x.shape[axis:], scale, bias, eps=attributes.get("epsilon", 1e-5))


def _reduced(function: Operator) -> Operator:
    """Return the operator that reduces along the axes of its second input, or of its attribute before opset 18."""

    def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = attributes.get("axes") if axes is None else axes.tolist()
        if not chosen:
            if attributes.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.ndim))
        result: Tensor = function(x, dim=chosen, keepdim=bool(attributes.get("keepdims", 1)))
        return result

    return reduce


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[position] if size == 0 else size for position, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    return torch.split(x, -(-x.shape[axis] // attributes["outputs"]), axis)


def _squeeze(_attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(_attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _slice(
    _attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    chosen = range(starts.numel()) if axes is None else axes.tolist()
    strides = [1] * starts.numel() if steps is None else steps.tolist()
    if min(strides) < 1:
        raise _refused("Slice with a step below 1")
    cut = [slice(None)] * x.ndim
    for start, end, axis, stride in zip(starts.tolist(), ends.tolist(), chosen, strides, strict=True):
        cut[axis] = slice(start, end, stride)
    return x[tuple(cut)]


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    picked = torch.where(indices < 0, indices + x.shape[axis], indices).to(x.device)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, picked.flatten()).reshape(shape)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _expand(_attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    mode = attributes.get("mode", b"constant").decode()
    if mode not in ("constant", "reflect") or axes is not None:
        raise _refused(f"Pad of mode {mode}, or along axes,")
    sides = pads.tolist()
    begin, end = sides[: x.ndim], sides[x.ndim :]
    if mode == "constant":
        return _padded(x, begin, end, 0.0 if value is None else float(value))
    if any(begin[:2]) or any(end[:2]):
        raise _refused("Pad that reflects the batch or channels")
    flat = [side for pair in zip(reversed(begin[2:]), reversed(end[2:]), strict=True) for side in pair]
    return F.pad(x, flat, mode="reflect")


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}
    if attributes["to"] not in kinds:
        raise _refused(f"Cast to ONNX's type {attributes['to']}")
    return x.to(kinds[attributes["to"]])


def _div(_attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(_attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


OPERATORS: dict[str, Operator] = {
    "Abs": lambda _, x: x.abs(),
    "Add": lambda _, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Conv": _conv,
    "Div": _div,
    "Elu": lambda attributes, x: F.elu(x, attributes.get("alpha", 1.0)),
    "Equal": lambda _, a, b: a == b,
    "Erf": lambda _, x: torch.erf(x),
    "Exp": lambda _, x: x.exp(),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda attributes, x: F.gelu(x, approximate=attributes.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda _, x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": lambda attributes, x: (attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda _, x: F.hardswish(x),
    "Identity": lambda _, x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x, attributes.get("alpha", 0.01)),
    "Log": lambda _, x: x.log(),
    "MatMul": lambda _, a, b: torch.matmul(a, b),
    "Max": lambda _, *parts: reduce(torch.maximum, parts),
    "MaxPool": _max_pool,
    "Min": lambda _, *parts: reduce(torch.minimum, parts),
    "Mul": lambda _, a, b: a * b,
    "Neg": lambda _, x: -x,
    "PRelu": lambda _, x, slope: torch.where(x < 0, slope * x, x),
    "Pad": _pad,
    "Pow": lambda _, a, b: a**b,
    "Range": lambda _, start, limit, delta: torch.arange(start.item(), limit.item(), delta.item()),
    "Reciprocal": lambda _, x: x.reciprocal(),
    "ReduceL2": _reduced(torch.linalg.vector_norm),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
    "Split": _split,
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Tanh": lambda _, x: x.tanh(),
    "Transpose": lambda attributes, x: x.permute(attributes.get("perm", tuple(reversed(range(x.ndim))))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, condition, a, b: torch.where(condition, a, b),
}
