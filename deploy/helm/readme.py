"""Writes the chart's README from the comments in its values.yaml: `python deploy/helm/readme.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "rookery"

HEAD = """\
# Rookery on Kubernetes

A coordinator, its worker, and for each teacher and each student of `teachers` and `students` what serves and trains it,
each a Deployment of its own: a profile is added, replaced or removed by a change of values that touches no other
workload. PostgreSQL, a broker (Redis or RabbitMQ) and S3 are yours; their secrets have to be in the namespace:

```console
$ kubectl create secret generic rookery-database \\
    --from-literal=url=postgresql+psycopg://rookery:PASSWORD@HOST:5432/rookery \\
    --from-literal=keda=postgresql://rookery:PASSWORD@HOST:5432/rookery
$ kubectl create secret generic rookery-broker --from-literal=url=redis://:PASSWORD@HOST:6379/0
$ kubectl create secret generic rookery-store --from-literal=access-key=KEY --from-literal=secret-key=KEY
$ helm install rookery deploy/helm/rookery --values my-values.yaml --wait --wait-for-jobs --timeout 40m
$ helm test rookery --timeout 35m
```

Helm's timeouts are 5 minutes otherwise: too short for models to load, and for the adaptation that `helm test` has done
where `test.teacher` and `test.student` are set.

[Examples](../examples): one GPU shared by all, three GPUs, a pool of 0 to 32 students on spot nodes, a teacher at an
endpoint. `dev.*` starts a PostgreSQL, a Redis and an S3 server that forget everything. There is no authentication: the
network policies say who may call, if the cluster's network enforces them.

## Values

A list's items and empty maps are what `values.schema.json` says; it refuses what it does not know.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A line of values.yaml: a key, what it is by default, and the comment above it."""

    path: str
    default: str
    """As JSON; empty for a key that only has others below it."""
    comment: str


def read_values(text: str) -> list[Value]:
    """In the file's order."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return list(_walk(root, "", text.splitlines()))


def _walk(mapping: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Value]:
    for key, value in mapping.value:
        path = f"{prefix}{key.value}"
        comment = _comment_above(key.start_mark.line, lines)
        if isinstance(value, yaml.MappingNode) and not _is_one_value(value, lines):
            yield Value(path=path, default="", comment=comment)
            yield from _walk(value, f"{path}.", lines)
        else:
            yield Value(path=path, default=json.dumps(_plain(value)), comment=comment)


def _is_one_value(mapping: yaml.MappingNode, lines: list[str]) -> bool:
    """Whether no key in it has a comment: it is a default as a whole."""
    return not any(
        _comment_above(key.start_mark.line, lines)
        or (isinstance(value, yaml.MappingNode) and not _is_one_value(value, lines))
        for key, value in mapping.value
    )


def _comment_above(line: int, lines: list[str]) -> str:
    found: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].strip().removeprefix("#").strip())
    return " ".join(found)


def _plain(node: yaml.Node) -> object:
    return yaml.safe_load(yaml.serialize(node))


def readme(text: str) -> str:
    """The README for a values.yaml."""
    rows = []
    for value in read_values(text):
        if not value.default and not value.comment:
            continue
        default = f"`{value.default}`" if value.default else ""
        rows.append(f"| `{value.path}` | {default} | {value.comment.replace('|', chr(92) + '|')} |")
    return "\n".join([HEAD, "| value | default | |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme((CHART / "values.yaml").read_text()))
