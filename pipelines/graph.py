"""The ONNX graph: made from a network, checked, opened in onnxruntime.

    images uint8 (batch, height, width, channels)  ->  probabilities float32 (batch, classes)

The batch is dynamic, every other side is fixed, and all weights are inside the file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contracts.bundle import INPUT, OUTPUT, Session
from contracts.errors import ExportError
from contracts.images import ImageSpec

if TYPE_CHECKING:
    import onnx
    import torch
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

# A batch of 1 would be baked into the graph as a constant, so the network is traced with two images.
TRACED_BATCH: Final = 2
DOMAINS: Final = frozenset({"", "ai.onnx"})
"""The operator domains a graph may use: ONNX's own, which every onnxruntime carries."""


def to_onnx(network: torch.nn.Module, *, image: ImageSpec, opset: int) -> bytes:
    """The ONNX file of a network that takes uint8 NHWC images and gives probabilities.

    The bytes are the same for the same weights and the same torch: what torch notes about its trace (file paths,
    source lines) is taken out.

    Raises:
        ExportError: torch cannot express the network in ONNX, or what it wrote does not pass `check`.
    """
    import torch

    network = network.eval()  # BatchNorm and Dropout would otherwise be exported as they train
    example = torch.zeros((TRACED_BATCH, *image.shape), dtype=torch.uint8)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch's exporter warns about its own use of torch.export; nothing in that is for the user to act on.
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings(
                    "ignore", category=category, module=r"(torch|torchvision|onnxscript|copyreg)(\.|$)"
                )
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                # An explicit Dim makes torch raise where it would otherwise quietly fix the batch.
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=opset,
                external_data=False,
            )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError) as error:
        raise ExportError(
            f"network {type(network).__name__}: torch could not write it as ONNX opset {opset} ({_first_line(error)}); "
            "change the layer it names, or export.opset."
        ) from error
    if program is None:  # torch's signature allows it for the old exporter only
        raise ExportError(f"network {type(network).__name__}: torch's exporter returned nothing; report this.")
    model = program.model_proto
    _strip_notes(model)
    check(model, image=image)
    return bytes(model.SerializeToString(deterministic=True))


def check(model: onnx.ModelProto, *, image: ImageSpec) -> None:
    """Refuse a graph that a server could not load from one file, or whose input and output are not the contract's.

    Raises:
        ExportError: external data, an operator from another domain, another input or output, or an invalid graph.
    """
    import onnx

    # External data first: the checker itself would go and look for the files.
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ExportError(
                f"graph: the weights {tensor.name!r} lie in another file; export with all weights inside."
            )
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in _nodes(model.graph.node)}
    if unknown := sorted(domains - DOMAINS):
        raise ExportError(f"graph: it uses operators of {unknown[0]!r}; only ONNX's own operators are served.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"graph: ONNX's checker refuses it ({_first_line(error)}); export it again.") from error
    inputs = [_signature(value) for value in model.graph.input]
    outputs = [_signature(value) for value in model.graph.output]
    # The batch is a name, and the same name on both sides: a row of probabilities for each image.
    batch = inputs[0][2][0] if inputs and inputs[0][2] else None
    if not isinstance(batch, str) or inputs != [(INPUT, onnx.TensorProto.UINT8, (batch, *image.shape))]:
        wanted = f"uint8 {INPUT!r} (batch, {image.height}, {image.width}, {image.channels})"
        raise ExportError(f"graph: its inputs are {inputs}, expected one, {wanted} with a free batch.")
    if [(name, kind, shape[0], len(shape)) for name, kind, shape in outputs if shape] != [
        (OUTPUT, onnx.TensorProto.FLOAT, batch, 2)
    ]:
        raise ExportError(f"graph: its outputs are {outputs}, expected one, float32 {OUTPUT!r} ({batch}, classes).")


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(model: bytes, settings: Session | None = None, *, cuda: bool = False) -> InferenceSession:
    """onnxruntime as a server would run the graph: on the CPU, with as many threads as this process may use.

    Args:
        model: The ONNX file.
        settings: Other threads and options than these.
        cuda: On CUDA, and nowhere else.

    Raises:
        ExportError: onnxruntime does not take the bytes, or cannot run them on CUDA.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as status
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

    settings = settings or Session()
    options = status.SessionOptions()
    options.intra_op_num_threads = settings.threads or cores()
    if settings.optimization == "extended":
        options.graph_optimization_level = status.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning steals the cores of neighbours
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda:
        onnxruntime.preload_dlls(directory="")
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [("CUDAExecutionProvider", {"cudnn_conv_algo_search": settings.convolution_search})]
    refusals = (status.Fail, status.InvalidGraph, status.InvalidProtobuf, status.InvalidArgument, status.NotImplemented)
    try:
        return InferenceSession(model, options, providers=providers)
    except refusals as error:
        raise ExportError(f"graph: onnxruntime cannot load it ({_first_line(error)}); export it again.") from error


def predict(session: InferenceSession, images: NDArray[np.uint8], *, batch_size: int) -> NDArray[np.float32]:
    """Probabilities (n, classes) of images (n, height, width, channels), `batch_size` at a time.

    The last batch is always a short one (the images' rest, or one image less than a full batch and one alone), so that
    a graph with a fixed batch cannot pass.

    Raises:
        ExportError: the graph cannot run at this batch size, or answers with another dtype or shape.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as status

    answers: list[NDArray[np.float32]] = []
    for start, stop in batches(len(images), batch_size):
        try:
            answer = np.asarray(session.run([OUTPUT], {INPUT: images[start:stop]})[0])
        except (status.Fail, status.InvalidArgument, status.RuntimeException) as error:
            size = stop - start
            raise ExportError(f"graph: a batch of {size} fails in onnxruntime ({_first_line(error)}).") from error
        if answer.dtype != np.float32 or answer.ndim != 2 or len(answer) != stop - start:
            raise ExportError(
                f"graph: {stop - start} images gave {answer.dtype} {answer.shape}, "
                f"expected float32 ({stop - start}, classes); export it again."
            )
        answers.append(answer)
    return np.concatenate(answers)


def batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each batch; where the size divides the count, the last full batch is cut in two unequal ones."""
    for start in range(0, count, size):
        stop = min(start + size, count)
        if stop == count and stop - start == size > 1:
            yield start, stop - 1
            yield stop - 1, stop
        else:
            yield start, stop


def _strip_notes(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for values in (model.graph.input, model.graph.output, model.graph.value_info, model.graph.initializer):
        for value in values:
            del value.metadata_props[:]
            value.doc_string = ""
    for node in _nodes(model.graph.node):
        del node.metadata_props[:]
        node.doc_string = ""
    model.doc_string = model.graph.doc_string = ""


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and, for control flow, those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[int | str, ...]]:
    """(name, element type, shape); a free side is its name in the shape."""
    tensor = value.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else side.dim_param for side in tensor.shape.dim)
    return value.name, tensor.elem_type, shape


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")[:200]
