"""The published schemas that the documents are held to.

Kubernetes' own are in the package kubernetes-validate, in their strict form, which refuses keys that it does not know.
The custom ones are written here after the types that their CRDs are generated from (KubeRay: RayClusterSpec and what it
holds; prometheus-operator: ServiceMonitor, PrometheusRule), as far as this project uses them: a key beyond
that is refused here, and is to be looked up and added. A RayCluster's pods are held to Kubernetes' schema.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema_rs

Schema = dict[str, Any]
VERSIONS: Final = ("1.29", "1.37")
"""The oldest that docs/scaling.md names, and the newest that the package knows."""


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_TEXTS: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_FLAG: Final[Schema] = {"type": "boolean"}
_DURATION: Final[Schema] = {"type": "string", "pattern": r"^(0|(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$"}
_SELECTOR: Final[Schema] = _object(matchLabels=_TEXTS, matchExpressions={"type": "array"})
_TEMPLATE: Final[Schema] = {"type": "object"}  # a pod's: see problem_of

_RAY_CLUSTER: Final = _object(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    suspend=_FLAG,
    enableInTreeAutoscaling=_FLAG,
    headServiceAnnotations=_TEXTS,
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=_TEXT, enableK8sTokenAuth=_FLAG),
    headGroupSpec=_object(
        ("template", "rayStartParams"),
        template=_TEMPLATE,
        rayStartParams=_TEXTS,
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        enableIngress=_FLAG,
        resources=_TEXTS,
        labels=_TEXTS,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _object(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=_TEXT,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            numOfHosts=_COUNT,
            idleTimeoutSeconds=_COUNT,
            suspend=_FLAG,
            rayStartParams=_TEXTS,
            resources=_TEXTS,
            labels=_TEXTS,
            template=_TEMPLATE,
        ),
    },
)
_KEY_OF_A_SECRET: Final = _object(("key",), name=_TEXT, key=_TEXT, optional=_FLAG)
_SERVICE_MONITOR: Final = _object(
    ("selector", "endpoints"),
    jobLabel=_TEXT,
    selector=_SELECTOR,
    endpoints={
        "type": "array",
        "minItems": 1,
        "items": _object(
            port=_TEXT,
            path=_TEXT,
            scheme={"enum": ["http", "https"]},
            interval=_DURATION,
            scrapeTimeout=_DURATION,
            authorization=_object(type=_TEXT, credentials=_KEY_OF_A_SECRET),
        ),
    },
)
_PROMETHEUS_RULE: Final = _object(
    groups={
        "type": "array",
        "items": _object(
            ("name",),
            name=_TEXT,
            interval=_DURATION,
            rules={
                "type": "array",
                "items": {
                    **_object(
                        ("expr",),
                        alert=_TEXT,
                        record=_TEXT,
                        expr=_TEXT,
                        **{"for": _DURATION, "keep_firing_for": _DURATION},
                        labels=_TEXTS,
                        annotations=_TEXTS,
                    ),
                    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
                },
            },
        ),
    }
)
_CUSTOM: Final = {
    ("ray.io/v1", "RayCluster"): _RAY_CLUSTER,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): _PROMETHEUS_RULE,
}


def problem_of(document: dict[str, Any]) -> str | None:
    """What a document does not keep to, with where; None where it is valid."""
    custom = _CUSTOM.get((document["apiVersion"], document["kind"]))
    if custom is None:
        return _builtin(document)
    # Its name and labels are held to what every object's are.
    metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    if set(document) != {"apiVersion", "kind", "metadata", "spec"}:
        return f"{sorted(document)}: apiVersion, kind, metadata and spec are expected"
    problem = _builtin(metadata) or _keeps_to(jsonschema_rs.Draft202012Validator(custom), document["spec"])
    if problem is None and document["kind"] == "RayCluster":
        groups = [document["spec"]["headGroupSpec"], *document["spec"].get("workerGroupSpecs", [])]
        pods = [{"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]} for group in groups]
        problem = next(filter(None, map(_builtin, pods)), None)
    return problem


@cache
def _schemas(version: str) -> tuple[Path, jsonschema_rs.Registry]:
    """Where the package keeps a file for each kind, and the definitions that all of them refer to."""
    package = importlib.util.find_spec("kubernetes_validate")
    assert package is not None
    assert package.origin is not None
    directory = Path(package.origin).parent / f"kubernetes-json-schema/v{version}.0-local-strict"
    definitions = json.loads((directory / "_definitions.json").read_text())
    return directory, jsonschema_rs.Registry([(definitions["$id"], definitions)])


@cache
def _validator(version: str, kind: str, api: str) -> jsonschema_rs.Draft202012Validator | None:
    """None for a kind that is not Kubernetes' own."""
    directory, registry = _schemas(version)
    group = re.sub(r"^([^./]*)(?:[.][^/]*)?/", r"\1-", api)  # apps/v1 is apps-v1, networking.k8s.io/v1 networking-v1
    path = directory / f"{kind.lower()}-{group}.json"
    if not path.exists():
        return None
    return jsonschema_rs.Draft202012Validator(json.loads(path.read_text()), registry=registry)


def _builtin(document: dict[str, Any]) -> str | None:
    for version in VERSIONS:
        validator = _validator(version, document["kind"], document["apiVersion"])
        if validator is None:
            return f"{document['apiVersion']} {document['kind']} is no kind of Kubernetes {version}"
        if (problem := _keeps_to(validator, document)) is not None:
            return f"{problem} (Kubernetes {version})"
    return None


def _keeps_to(validator: jsonschema_rs.Draft202012Validator, content: Any) -> str | None:
    error = next(validator.iter_errors(content), None)
    return f"{'.'.join(map(str, error.instance_path))}: {error.message}" if error else None
