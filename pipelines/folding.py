"""BatchNormalization, which has no int8 kernel, as what has one: a 1x1 depthwise convolution.

One right behind a convolution is folded into it by onnxruntime; here are those behind an activation. They are moved
past a max pooling where their scales are positive, because there are fewer values then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

SCALE: Final = "_scale"
"""Ends the name of a convolution that a BatchNormalization has become."""


def fold(part: onnx.GraphProto) -> None:
    """Replace what can be; the nodes must have names (`name_nodes`)."""
    _pool_first(part)
    _scale_by_convolution(part)


def name_nodes(part: onnx.GraphProto) -> None:
    """A name for each node that has none: what stays in fp32 is told by names, and what is made of a node has its name.

    ONNX asks for none, and other exporters than torch's leave them out.
    """
    taken = {node.name for node in part.node}
    for node in part.node:
        if not node.name:
            node.name = _unlike(taken, f"node_{node.op_type}")
            taken.add(node.name)


def _new_name(part: onnx.GraphProto, wanted: str) -> str:
    """A name that no tensor of the graph has."""
    made = {name for node in part.node for name in node.output}
    return _unlike(made | {tensor.name for tensor in (*part.initializer, *part.input)}, wanted)


def _unlike(taken: set[str], wanted: str) -> str:
    return next(name for name in (wanted, *(f"{wanted}_{n}" for n in range(len(taken) + 1))) if name not in taken)


def _pool_first(part: onnx.GraphProto) -> None:
    """BatchNormalization, MaxPool -> MaxPool, BatchNormalization: the same where no scale is negative."""
    for norm in [node for node in part.node if node.op_type == "BatchNormalization"]:
        readers = _readers(part, norm.output[0])
        scale, _ = _affine(part, norm)
        if len(readers) != 1 or readers[0].op_type != "MaxPool" or len(readers[0].output) != 1 or (scale < 0).any():
            continue
        pool, raw = readers[0], _new_name(part, f"{readers[0].output[0]}_raw")
        norm.output[0], pool.output[0] = pool.output[0], raw
        pool.input[0], norm.input[0] = norm.input[0], raw
        moved = type(norm).FromString(norm.SerializeToString())
        part.node.remove(norm)
        part.node.insert(list(part.node).index(pool) + 1, moved)


def _scale_by_convolution(part: onnx.GraphProto) -> None:
    """BatchNormalization of images -> a 1x1 convolution of each channel by itself."""
    from onnx import helper, numpy_helper

    maps = _maps(part)
    for index, norm in enumerate(part.node):
        if norm.op_type != "BatchNormalization" or norm.output[0] not in maps:
            continue
        scale, shift = _affine(part, norm)
        name = f"{norm.name}{SCALE}"
        weight, bias = _new_name(part, f"{name}.weight"), _new_name(part, f"{name}.bias")
        part.initializer.append(numpy_helper.from_array(scale.reshape(-1, 1, 1, 1), weight))
        part.initializer.append(numpy_helper.from_array(shift, bias))
        inputs = [norm.input[0], weight, bias]
        made = helper.make_node("Conv", inputs, norm.output[:1], name=name, group=len(scale), kernel_shape=[1, 1])
        part.node[index].CopyFrom(made)


def _affine(part: onnx.GraphProto, norm: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, shift) of each channel that a BatchNormalization comes to."""
    from onnx import numpy_helper

    values = {tensor.name: tensor for tensor in part.initializer}
    weight, bias, mean, variance = (numpy_helper.to_array(values[name]).astype(np.float64) for name in norm.input[1:5])
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    scale = weight / np.sqrt(variance + epsilon)
    return scale.astype(np.float32), (bias - mean * scale).astype(np.float32)


def _maps(part: onnx.GraphProto) -> set[str]:
    """The tensors that come, through channel-wise operators alone, from a convolution: (batch, channels, h, w)."""
    same = {"Relu", "Clip", "MaxPool", "AveragePool", "BatchNormalization", "LeakyRelu", "Sigmoid"}
    found: set[str] = set()
    for node in part.node:
        if node.op_type == "Conv" or (node.op_type in same and node.input[0] in found):
            found.update(node.output)
    return found


def _readers(part: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    used = [output.name for output in part.output]
    return [] if tensor in used else [node for node in part.node if tensor in node.input]
