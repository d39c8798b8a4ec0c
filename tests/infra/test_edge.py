"""infra/edge/nginx.conf and its container, without an engine: what is sent on, and room for what is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SENT_ON = {"Connection", "X-Request-ID", "X-Forwarded-For", "X-Forwarded-Proto", "Host"}


def proxied() -> dict[str, set[str]]:
    """What each service is asked through from outside -> the fields that nginx sets on the way to it.

    nginx takes the fields of the level above only where a level sets none itself.
    """
    text = re.sub(r"#.*", "", (ROOT / "infra/edge/nginx.conf").read_text())
    words = re.findall(r"'[^']*'|\"[^\"]*\"|[;{}]|[^\s;{}]+", text)
    found: dict[str, set[str]] = {}
    levels: list[dict[str, Any]] = [{"fields": set(), "to": None, "listens": ""}]
    line: list[str] = []
    for word in words:
        if word == "{":
            levels.append({"fields": set(), "to": None, "listens": levels[-1]["listens"]})
        elif word == "}":
            level = levels.pop()
            if level["to"] and "127.0.0.1" not in level["listens"]:
                found[level["to"]] = next(
                    (each["fields"] for each in (level, *reversed(levels)) if each["fields"]), set()
                )
        elif word != ";":
            line.append(word)
            continue
        elif line[0] == "proxy_set_header":
            levels[-1]["fields"].add(line[1])
        elif line[0] == "proxy_pass":
            levels[-1]["to"] = line[1]
        elif line[0] == "listen":
            levels[-1]["listens"] = line[1]
        line = []
    return found


@pytest.mark.parametrize("service", ["inference", "tracking", "training"])
def test_every_service_is_told_the_request_s_id_and_who_asks(service: str) -> None:
    assert proxied()[f"http://${service}"] >= SENT_ON


def test_what_nginx_may_write_has_room_in_its_memory() -> None:
    """A container's /tmp counts as its memory: full, it would have nginx killed with every request in it."""
    edge = yaml.safe_load((ROOT / "infra/compose.edge.yml").read_text().replace("!reset", ""))["services"]["edge"]
    (room,) = (int(re.search(r"size=(\d+)m", mount)[1]) for mount in edge["tmpfs"])  # type: ignore[index]
    assert 2 * room <= int(edge["mem_limit"].removesuffix("m"))
    # Answers, such as a model's file, are as large as they like: they wait at the service instead.
    assert "proxy_max_temp_file_size 0;" in (ROOT / "infra/edge/nginx.conf").read_text()


def test_nginx_has_as_many_processes_as_it_may_on_every_machine() -> None:
    """One a core, as `auto` makes them, would be more than the container may have where there are many cores."""
    edge = yaml.safe_load((ROOT / "infra/compose.edge.yml").read_text().replace("!reset", ""))["services"]["edge"]
    found = re.search(r"^worker_processes (\w+);", (ROOT / "infra/edge/nginx.conf").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1].isdecimal()
    assert 1 < int(found[1]) <= edge["pids_limit"] // 4
