"""The configuration table of the README, from the dataclasses and conf/.

Rewrites the README when it is run: python tests/readme_table.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from distmetric.config.compose import compose, groups, groups_of
from distmetric.config.decode import leaves
from distmetric.config.jobs import (
    BenchmarkJob,
    EmbedJob,
    EvaluateJob,
    ExportJob,
    IngestJob,
    MineJob,
    ReportJob,
    SearchJob,
    StudyJob,
    TuneJob,
)
from distmetric.config.schema import Config

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- configuration -->", "<!-- /configuration -->"
REQUIRED = "required"
FOLLOWING = "data.size"  # takes its value from model.image_size, whatever sets that
# What has to be given before a choice, or the configuration of a job, composes at all.
NEEDED = {
    "data=catalog": ["data.path"],
    "model=custom": ["model.target"],
    "loss=custom": ["loss.target"],
    "protocol=lfw": ["protocol.pairs"],
    "ingest": ["source", "out"],
    "embed": ["checkpoint", "source", "out"],
    "export": ["checkpoint"],
    "mine": ["embeddings", "out"],
    "report": ["runs"],
    "search": ["gallery", "queries", "out"],
    "tune": ["space"],
}


JOBS = {
    "ingest": IngestJob,
    "evaluate": EvaluateJob,
    "embed": EmbedJob,
    "benchmark": BenchmarkJob,
    "export": ExportJob,
    "mine": MineJob,
    "report": ReportJob,
    "search": SearchJob,
    "study": StudyJob,
    "tune": TuneJob,
}


def table() -> str:
    """The tables of jobs/train.py and of the other jobs, as Markdown."""
    lines = ["| setting of `jobs/train.py` | default | meaning |", "|---|---|---|"]
    lines += [row for name in dataclasses.fields(Config) for row in _section(name.name)]
    for job, schema in JOBS.items():
        values = compose(job, _needed(job))
        lines += ["", f"| setting of `jobs/{job}.py` | default | meaning |", "|---|---|---|"]
        lines += [
            row
            for leaf in _leaves(schema, values, "")
            for row in _job_rows(job, get_type_hints(schema), *leaf)
        ]
    return "\n".join(lines)


def updated(text: str) -> str:
    """The README with its tables as they have to be."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


def _section(name: str) -> list[str]:
    schema = get_type_hints(Config)[name]
    if name not in groups():
        defaults = _defaults()
        if dataclasses.is_dataclass(schema):
            title = f"| **`{name}`** | | {_sentence(schema)} |"
            found = _leaves(schema, defaults[name], f"{name}.")
            return [title, *(_row(key, _shown(value), doc) for key, value, doc in found)]
        return [_row(name, _shown(defaults[name]), _field_docs(Config)[name])]
    choices = _choices(name)
    meaning = _sentences(schema) + "".join(_elsewhere(name, choice) for choice in choices)
    title = f"| **`{name}=`** {_escaped(' | '.join(choices))} | `{choices[0]}` | {meaning} |"
    return [title, *_merged(name, schema, choices)]


def _merged(group: str, schema: Any, choices: list[str], file: str = "config") -> Iterator[str]:
    """One row per key of a group; what differs between its choices is named with the choices it holds for."""
    defaults: dict[str, dict[str, list[str]]] = {}
    docs: dict[str, dict[str, list[str]]] = {}
    for choice in choices:
        values = _chosen(group, choice, file)[group]
        for key, value, doc in _leaves(_variant(schema, values.get("name")), values, f"{group}."):
            if key != f"{group}.name":
                defaults.setdefault(key, {}).setdefault(_shown(value), []).append(choice)
                docs.setdefault(key, {}).setdefault(doc, []).append(choice)
    for key in defaults:
        cells = [
            value if choices[0] in having or len(having) == len(choices) else f"{value} ({', '.join(having)})"
            for value, having in defaults[key].items()
        ]
        meaning = [
            doc if choices[0] in having or len(docs[key]) == 1 else f"{', '.join(having)}: {doc}"
            for doc, having in docs[key].items()
        ]
        yield _row(key, "; ".join(cells), " ".join(meaning))


def _choices(group: str, file: str = "config") -> list[str]:
    """Of a group, that of the file of conf/ first."""
    text = (README.parent / "conf" / f"{file}.yaml").read_text(encoding="utf-8")
    first = text.partition(f"- {group}: ")[2].split()[0]
    return [first, *(choice for choice in groups()[group] if choice != first)]


@cache
def _defaults() -> dict[str, Any]:
    return compose("config", [])


@cache
def _chosen(group: str, choice: str, file: str = "config") -> dict[str, Any]:
    return compose(file, [f"{group}={choice}", *_needed(f"{group}={choice}"), *_needed(file)])


def _elsewhere(group: str, choice: str) -> str:
    """What a choice sets outside its group."""
    default, chosen = leaves(_defaults()), leaves(_chosen(group, choice))
    others = [
        f"`{key}={json.dumps(value)}`"
        for key, value in chosen.items()
        if not key.startswith(f"{group}.") and key != FOLLOWING and default.get(key, value) != value
    ]
    return f" {choice} also sets {', '.join(others)}." if others else ""


def _needed(what: str) -> list[str]:
    return [f"{key}={REQUIRED}" for key in NEEDED.get(what, ())]


def _variant(schema: Any, name: str | None) -> type:
    if dataclasses.is_dataclass(schema):
        return schema
    return next(each for each in get_args(schema) if name in get_args(get_type_hints(each)["name"]))


def _leaves(schema: type, values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, str]]:
    hints, docs = get_type_hints(schema), _field_docs(schema)
    for field in dataclasses.fields(schema):
        value, kind = values.get(field.name), hints[field.name]
        key, doc = f"{prefix}{field.name}", docs.get(field.name, "")
        origin, arguments = get_origin(kind), get_args(kind)
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, value, f"{key}.")
        elif arguments and all(map(dataclasses.is_dataclass, arguments)):
            # Any of the choices of a group, inside one of them: its settings have their rows already.
            yield key, value["name"], doc
        elif origin is dict and dataclasses.is_dataclass(arguments[1]):
            yield key, ", ".join(value), doc
            yield from _leaves(arguments[1], _defaults_of(arguments[1]), f"{key}.NAME.")
        else:
            listed = (
                f" One of {', '.join(map(str, arguments))}."
                if origin is Literal and len(arguments) > 1
                else ""
            )
            yield key, value, doc + listed


def _defaults_of(schema: type) -> dict[str, Any]:
    """What a field of a dataclass is where nothing is given; what must be given is a choice by name."""
    return {
        field.name: {"name": REQUIRED} if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(schema)
    }


@cache
def _field_docs(schema: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and its bases; Python itself forgets them."""
    docs: dict[str, str] = {}
    for base in reversed([each for each in schema.__mro__ if dataclasses.is_dataclass(each)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, doc in pairwise(body):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs


def _sentences(schema: Any) -> str:
    if dataclasses.is_dataclass(schema):
        return _sentence(schema)
    parts = []
    for variant in get_args(schema):
        name = get_args(get_type_hints(variant)["name"])[0]
        parts.append(f"{name}: {_sentence(variant)}")
    return " ".join(parts)


def _sentence(schema: type) -> str:
    text = " ".join((inspect.getdoc(schema) or "").partition("\n\n")[0].split())
    described = re.fullmatch(r"Settings of `(\w+)`\.", text)
    return _sentence(getattr(sys.modules[schema.__module__], described[1])) if described else _escaped(text)


def _shown(value: Any) -> str:
    if value == REQUIRED:
        return "*required*"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _job_rows(job: str, hints: dict[str, Any], key: str, value: Any, doc: str) -> list[str]:
    """A setting of a job, or a group; the settings of those that jobs/train.py has, too, are listed there."""
    if key not in groups():
        return [_row(key, _shown(value), doc)]
    own = key not in groups_of("config")
    choices = _choices(key, job if own else "config")
    meaning = f"{_escaped(doc)} {_sentences(hints[key])}" if own else _escaped(doc)
    title = f"| **`{key}=`** {_escaped(' | '.join(choices))} | `{choices[0]}` | {meaning} |"
    return [title, *(_merged(key, hints[key], choices, job) if own else ())]


def _row(key: str, default: str, doc: str) -> str:
    return f"| `{key}` | {default} | {_escaped(doc)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
