"""What an ONNX graph must be before a session is made of it: self-contained, of known operators, of our signature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from contracts.bundle import INPUT, MODEL, OUTPUT, Bundle
from contracts.errors import BundleError

DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator domains that onnxruntime itself brings; a custom one would need a shared library from somewhere."""


def check(data: bytes, bundle: Bundle, *, file: str = MODEL) -> None:
    """Refuse a graph that reads other files, calls unknown operators, or is not images -> probabilities.

    Raises:
        BundleError: with what was found and what was expected.
    """
    import onnx

    where = f"bundle of {bundle.manifest.name!r}: {file}"
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own, which brings no types
        raise BundleError(f"{where} is not an ONNX file; export it again.") from error
    local = {(function.domain, function.name) for function in model.functions}
    for graph in (found for part in (model.graph, *model.functions) for found in _graphs(part)):
        # A function is a list of nodes like a graph, but has no initializers.
        for tensor in (*getattr(graph, "initializer", ()), *_constants(graph)):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise BundleError(f"{where} keeps tensor {tensor.name!r} in another file; export it self-contained.")
        _known_operators(where, graph.node, local)
    _signature(where, model, bundle)


def _known_operators(where: str, nodes: Iterable[Any], local: set[tuple[str, str]]) -> None:
    for node in nodes:
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
            known = ", ".join(sorted(DOMAINS - {""}))
            raise BundleError(f"{where} uses operator {node.domain}.{node.op_type}; only those of {known} are served.")


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph, or function, and the graphs inside its If, Loop and Scan nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _graphs(inner)


def _constants(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _signature(where: str, model: Any, bundle: Bundle) -> None:
    import onnx

    spec, classes = bundle.manifest.input, len(bundle.manifest.labels)
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initial]
    wanted = (
        (INPUT, inputs, onnx.TensorProto.UINT8, (None, *spec.shape)),
        (OUTPUT, list(model.graph.output), onnx.TensorProto.FLOAT, (None, classes)),
    )
    for name, values, kind, shape in wanted:
        if [value.name for value in values] != [name]:
            raise BundleError(f"{where} has {[value.name for value in values]} where {name!r} is expected.")
        tensor = values[0].type.tensor_type
        found = tuple(dim.dim_value or None for dim in tensor.shape.dim)
        # A symbolic side is fine (the session checks it at the first run); a fixed batch or another size is not.
        same = len(found) == len(shape) and found[0] is None
        if tensor.elem_type != kind or not same or any(f not in (None, s) for f, s in zip(found, shape, strict=True)):
            kinds = f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} {found}"
            raise BundleError(
                f"{where}: {name!r} is {kinds}; {onnx.TensorProto.DataType.Name(kind)} {shape} is expected."
            )
