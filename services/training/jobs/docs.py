"""The page /docs: the OpenAPI document as plain HTML, so that it is there without a network and runs no script."""

from __future__ import annotations

import html
import json
from typing import Any, Final

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font: 1.05rem ui-monospace, monospace; margin-top: 2rem; border-top: 1px solid; padding-top: 1rem; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid; border-radius: .3rem; font-size: .85rem; }
td, th { text-align: left; vertical-align: top; padding: .1rem 1rem .1rem 0; }
"""


def page(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document."""
    info = document["info"]
    parts = [f"<h1>{_text(info['title'])}</h1>", *_paragraphs(info.get("description", ""))]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += [f"<h2>{method.upper()} {_text(path)}</h2>", *_paragraphs(operation.get("description", ""))]
            parts += _parameters(operation.get("parameters", []))
            parts += _body(operation.get("requestBody"))
            answers = ", ".join(
                f"{status} {answer['description']}" for status, answer in operation["responses"].items()
            )
            parts.append(f"<p>Answers: {_text(answers)}</p>")
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        parts.append(f"<h2>{_text(name)}</h2><pre>{_text(json.dumps(schema, indent=2))}</pre>")
    parts.append('<p><a href="/openapi.json">/openapi.json</a></p>')
    head = f'<meta charset="utf-8"><title>{_text(info["title"])}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _parameters(parameters: list[dict[str, Any]]) -> list[str]:
    if not parameters:
        return []
    rows = [
        f"<tr><td><code>{_text(each['name'])}</code></td><td>{_text(each['in'])}</td>"
        f"<td>{_text(each.get('description', ''))}</td></tr>"
        for each in parameters
    ]
    return ["<table><tr><th>parameter</th><th>in</th><th></th></tr>", *rows, "</table>"]


def _body(body: dict[str, Any] | None) -> list[str]:
    parts = []
    for kind, content in (body or {"content": {}})["content"].items():
        for name, example in content.get("examples", {}).items():
            parts.append(f"<p>{_text(name)}</p><pre>{_text(json.dumps(example['value'], indent=2))}</pre>")
        schema = _text(json.dumps(content["schema"], indent=2))
        parts.append(f"<details><summary>Body: {_text(kind)}</summary><pre>{schema}</pre></details>")
    return parts


def _paragraphs(text: str) -> list[str]:
    return [f"<p>{_text(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip()]


def _text(text: str) -> str:
    return html.escape(text)
