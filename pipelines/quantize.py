"""A graph in smaller numbers: int8 with scales from training images (static QDQ), and fp16.

The normalisation before the first weights and all after the last ones stay in fp32: they are cheap, and their rounding
would be the costliest. Weights have a scale a channel, activations one a tensor.

BatchNormalization has no int8 kernel; `pipelines.folding` replaces it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from contracts.bundle import INPUT
from contracts.images import ImageSpec
from pipelines import folding, graph

if TYPE_CHECKING:
    import onnx

Calibration = Literal["minmax", "percentile", "entropy"]
CALIBRATIONS: Final[tuple[Calibration, ...]] = ("minmax", "percentile", "entropy")
PERCENTILE: Final = 99.99
SIZES: Final = (256, 64)
"""Training images that the scales are taken from: small ones, and those of more than `SMALL` pixels."""
SMALL: Final = 64 * 64
_BATCH_PIXELS: Final = 400_000  # all activations of a batch are held at once
_WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul"})
_QUANTIZED: Final = (
    *("Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze"),
)


def prepare(model: bytes) -> onnx.ModelProto:
    """The graph as `int8` takes it: folded, with shapes, and without BatchNormalization where there is another way."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as directory, _quiet():
        source, target = Path(directory) / "source.onnx", Path(directory) / "prepared.onnx"
        source.write_bytes(model)
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        prepared = onnx.load(str(target))
    folding.name_nodes(prepared.graph)
    folding.fold(prepared.graph)
    _drop_unused(prepared)
    del prepared.graph.value_info[:]  # some of the shapes are others now
    return onnx.shape_inference.infer_shapes(prepared)


def calibration_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An even sample of training images (n, h, w, c), the same every time."""
    wanted = SIZES[0] if images.shape[1] * images.shape[2] <= SMALL else SIZES[1]
    chosen = np.linspace(0, len(images) - 1, min(wanted, len(images))).round().astype(np.intp)
    return np.ascontiguousarray(images[chosen])


def calibrate(prepared: onnx.ModelProto, images: NDArray[np.uint8], method: Calibration) -> Any:
    """The range of every activation on uint8 images (n, h, w, c), as onnxruntime's quantizer takes it."""
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    methods = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "percentile": (CalibrationMethod.Percentile, {"percentile": PERCENTILE, "symmetric": False}),
        "entropy": (CalibrationMethod.Entropy, {}),
    }
    kind, options = methods[method]
    size = max(1, min(32, _BATCH_PIXELS // (images.shape[1] * images.shape[2])))
    with tempfile.TemporaryDirectory() as directory, _quiet():
        source = Path(directory) / "source.onnx"
        onnx.save(prepared, str(source))
        calibrator: Any = create_calibrator(
            str(source), list(_QUANTIZED), str(Path(directory) / "all.onnx"), kind, extra_options=options
        )
        for start in range(0, len(images), size):
            # One batch a call: the calibrator keeps the activations of all batches of a call.
            calibrator.collect_data(_OneBatch(images[start : start + size]))
        return calibrator.compute_data()


def int8(prepared: onnx.ModelProto, ranges: Any, *, image: ImageSpec, first_layer: bool, exact: bool) -> bytes:
    """The ONNX file in int8.

    Args:
        prepared: by `prepare`; not changed.
        ranges: by `calibrate`.
        image: the graph's input.
        first_layer: Whether the first convolution is int8 as well. Its few input channels fill no vector, so that the
            one in fp32 may be the faster.
        exact: The machine's int8 products do not saturate (contracts.cpu); otherwise weights get 7 bits.
    """
    import onnx
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    copy = onnx.ModelProto()
    copy.CopyFrom(prepared)
    with _quiet():
        quantizer: Any = QDQQuantizer(  # type: ignore[no-untyped-call]
            copy,
            per_channel=True,
            reduce_range=not exact,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,  # from 0 to 255, where nothing after a ReLU is wasted
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=_kept(copy.graph, first_layer=first_layer),
            op_types_to_quantize=list(_QUANTIZED),
            extra_options={},
        )
        quantizer.quantize_model()
    made: onnx.ModelProto = quantizer.model.model
    _float_logits(made.graph)
    return _finished(made, image)


def fp16(model: bytes, *, image: ImageSpec) -> bytes:
    """The ONNX file in half precision between the normalisation and the probabilities, which stay in fp32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    loaded = onnx.load_model_from_string(model)
    folding.name_nodes(loaded.graph)
    with _quiet():
        made = convert_float_to_float16(  # type: ignore[no-untyped-call]
            loaded, keep_io_types=True, node_block_list=_kept(loaded.graph, first_layer=True)
        )
    return _finished(made, image)


class _OneBatch:
    """What onnxruntime's calibrators read from."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._left: dict[str, NDArray[np.uint8]] | None = {INPUT: images}

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch, self._left = self._left, None
        return batch


def _kept(part: onnx.GraphProto, *, first_layer: bool) -> list[str]:
    """The names of the nodes that stay in fp32."""
    nodes = list(part.node)
    weighted = [index for index, node in enumerate(nodes) if node.op_type in _WEIGHTED]
    if not weighted:
        return [node.name for node in nodes]
    first, last = weighted[0], weighted[-1]
    if not first_layer and first != last:
        first += 1
        # To where there are fewest values: after its activation, and a pooling right behind that.
        while nodes[first].op_type in ("Relu", "Clip", "MaxPool") or nodes[first].name.endswith(folding.SCALE):
            first += 1
    return [node.name for node in (*nodes[:first], *nodes[last + 1 :])]


def _float_logits(part: onnx.GraphProto) -> None:
    """Take the rounding off the last layer's answer: an int8 matrix product can give fp32 at no cost."""
    readers = {name: node for node in part.node for name in node.input}
    gemm = next((node for node in reversed(part.node) if node.op_type in _WEIGHTED), None)
    if gemm is None or gemm.op_type != "Gemm":
        return
    quantize = readers.get(gemm.output[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return
    restore = readers[quantize.output[0]]
    for node in part.node:
        for index, name in enumerate(node.input):
            if name == restore.output[0]:
                node.input[index] = gemm.output[0]
    part.node.remove(quantize)
    part.node.remove(restore)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    # onnxruntime's optimizer lists every domain that it knows; the graph uses ONNX's own.
    for entry in [entry for entry in model.opset_import if entry.domain not in graph.DOMAINS]:
        model.opset_import.remove(entry)


def _finished(made: onnx.ModelProto, image: ImageSpec) -> bytes:
    from onnxruntime.quantization.onnx_model import ONNXModel

    tools: Any = ONNXModel(made)
    tools.topological_sort()  # the tools append what they insert
    _drop_unused(made)
    del made.graph.value_info[:]
    del made.metadata_props[:]
    graph.check(made, image=image)
    return bytes(made.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools print, and give advice on the root logger; none of it is for the user to act on."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
