"""Configurations that nobody would write: wrong in every way that a generator can think of, drawn by a seed."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

from distmetric.config.compose import compose, groups, groups_of
from distmetric.config.decode import leaves

REQUIRED = {
    "config": [],
    "benchmark": [],
    "embed": ["checkpoint=nowhere/run", "source=nowhere/photos", "out=nowhere/e.parquet"],
    "evaluate": ["checkpoint=nowhere/run"],
    "export": ["checkpoint=nowhere/run", "out=nowhere/exported"],
    "ingest": ["source=nowhere/photos", "out=nowhere/c.arrow"],
    "mine": ["embeddings=nowhere/e.parquet", "out=nowhere/mined"],
    "report": ["runs=[nowhere/run]"],
    "search": [
        "gallery=nowhere/photos",
        "queries=nowhere/photo.jpg",
        "out=nowhere/found",
        "checkpoint=nowhere/run",
    ],
    "study": ["study=staleness", "study.seeds=[0]"],
    "tune": ["space={optim.lr: [0.1, 0.2]}"],
}

NUMBERS = (
    *(
        "-1",
        "0",
        "1",
        "2",
        "3",
        "0.5",
        "-0.5",
        "1.0",
        "1e-300",
        "1e300",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "-inf",
    ),
    *(
        "9223372036854775808",
        "-9223372036854775809",
        "1" * 30,
        "9" * 400,
        "0x10",
        "1_000",
        "007",
        "+5",
        "1.",
        ".5",
    ),
)
TEXTS = (
    *(
        "''",
        "' '",
        "null",
        "true",
        "FALSE",
        "yes",
        "???",
        "'???'",
        "none",
        "[]",
        "{}",
        "[null]",
        "{a:1}",
        "[[]]",
    ),
    *(
        "[1,2,3]",
        "[a,b]",
        "{a:{b:{c:[1,{d:2}]}}}",
        "[-1]",
        "[nan]",
        "[1,x]",
        "{1:2}",
        "{'':1}",
        "[0,0]",
        "[5,1]",
    ),
    *(
        "é",
        "日本語",
        "'\u202eabc'",
        "'\ud800'",
        "'a\x00b'",
        "'a\nb'",
        "'\t'",
        "\U0001f600",
        "'%s%n'",
        "a" * 3000,
    ),
    *(
        "../../etc/passwd",
        "/dev/null",
        "'~'",
        "file:///etc/passwd",
        "http://[::1",
        "s3://",
        "'://'",
        "-",
        "--",
        ".",
    ),
    *(
        "'${seed}'",
        "${oc.env:HOME}",
        "!!python/name:os.system",
        "{_target_: os.system}",
        "'*'",
        "a,b",
        "range(3)",
    ),
    *(
        "choice(1,2)",
        "glob(*)",
        "int(3)",
        "str(1)",
        "float(x)",
        "json_str({})",
        "extend_list(1)",
        "sort(3,2)",
    ),
)
SYNTAX = (
    *(
        "",
        "=",
        "==",
        "a",
        "=5",
        "a=",
        "a==b",
        "[",
        "]",
        "{",
        "a=[",
        "a={",
        "a=[1,",
        "a={b",
        "a='",
        'a="',
        "a=(",
        "a=)",
    ),
    *(
        "~",
        "~~a",
        "+",
        "++",
        "+++a=1",
        "~a=1",
        "a@b=c",
        "a@=c",
        "@b=c",
        "a@:b=c",
        "a/b=c",
        "/a=b",
        "a/=b",
        "a..b=1",
    ),
    *(
        ".a=1",
        "a.=1",
        "a b=1",
        " a=1",
        "a =1",
        "a= 1 ",
        "a\n=1",
        "\x00=1",
        "é=1",
        "日=1",
        "-a=1",
        "--a",
        "--a=b",
        "-",
    ),
    *(
        "--config-dir=/tmp",
        "--multirun",
        "-m",
        "--help=1",
        "hydra.run.dir=x",
        "+hydra.x=1",
        "hydra/launcher=x",
        "1=2",
    ),
    *(
        "a=${b}",
        "a=\\${b}",
        "${a}=1",
        "a=b=c",
        "a=b;c",
        "a=$(id)",
        "a=`id`",
        "_target_=os.system",
        "+_target_=x",
        "\\",
    ),
    *(
        "a" * 5000,
        "a" * 5000 + "=1",
        "a." * 2000 + "b=1",
        "a=" + "[" * 3000,
        "a=" + "9" * 6000,
        "a=" + "x" * 25_000,
    ),
    *(
        "\ud800=1",
        "a=\udcff",
        "\u202e=1",
        "a=\r\nb=2",
        "null=1",
        "true=1",
        "a=%",
        "a=\\'",
        "a='\\'",
        "*=1",
        "**",
    ),
)


def bad_overrides(draw: random.Random, job: str) -> list[str]:
    """A command line of a job that is wrong somewhere, nearly always."""
    chosen = _choices(draw, job)
    keys = _keys(job, tuple(chosen))
    kinds: list[Callable[[], list[str]]] = [
        lambda: [f"{_key(draw, keys)}={draw.choice(NUMBERS)}"],
        lambda: [f"{_key(draw, keys)}={draw.choice(TEXTS)}"],
        lambda: [f"{_misspelled(draw, _key(draw, keys))}={draw.choice((*NUMBERS, 'a'))}"],
        lambda: [
            f"{draw.choice(('+', '++', '~', ''))}{_key(draw, keys)}.{_word(draw)}={draw.choice(NUMBERS)}"
        ],
        lambda: [f"{draw.choice(('+', '++', '~'))}{_key(draw, keys)}"],
        lambda: [f"{draw.choice(list(groups()))}={_choice(draw)}"],
        lambda: [f"{_section(draw, keys)}={draw.choice((*TEXTS, *NUMBERS))}"],
        lambda: [f"{_key(draw, keys)}@{_section(draw, keys)}={_word(draw)}"],
        lambda: [draw.choice(SYNTAX)],
        lambda: ["".join(draw.choices(string.printable, k=draw.randrange(1, 60)))],
        lambda: [_nested(draw, _section(draw, keys), 0)],
    ]
    count = draw.choice((1, 1, 1, 2, 3))
    wrong = [text for _ in range(count) for text in draw.choice(kinds)()]
    given = [*REQUIRED[job], *chosen, *wrong]
    if draw.random() < 0.1:
        given.remove(draw.choice(given))
    if draw.random() < 0.1:
        draw.shuffle(given)
    return given


def valid_overrides(draw: random.Random) -> list[str]:
    """Choices and numbers that may well fit: small ones, as a user tries them out."""
    given = _choices(draw, "config", some=1.0, without=("data", "tracking"))
    keys = [key for key in _keys("config", tuple(given)) if not key.startswith(("data.", "tracking."))]
    values = ("0", "1", "2", "3", "4", "8", "16", "0.1", "0.5", "1.0", "2.0", "true", "false", "null", "1e-3")
    for key in draw.sample(keys, draw.randrange(0, 4)):
        given.append(f"{key}={draw.choice(values)}")
    return given


_KEYS: dict[tuple[str, tuple[str, ...]], list[str]] = {}


def _keys(job: str, chosen: tuple[str, ...]) -> list[str]:
    """All settings that a job has with these choices."""
    known = _KEYS.get((job, chosen))
    if known is None:
        known = sorted(leaves(compose(job, [*REQUIRED[job], *chosen])))
        _KEYS[job, chosen] = known
    return known


def _choices(draw: random.Random, job: str, some: float = 0.5, without: tuple[str, ...] = ()) -> list[str]:
    """At most one choice beside the defaults, so that few compositions are needed for many command lines."""
    names = [name for name in groups_of(job) if name not in ("experiment", "debug", *without)]
    if not names or draw.random() > some:
        return []
    name = draw.choice(names)
    known = [each for each in groups()[name] if not without or each not in ("timm", "transformers")]
    choice = draw.choice(known)  # libraries would look for weights on the network
    needed = {
        "data=catalog": ["data.path=nowhere/c.arrow"],
        "model=custom": ["model.target=nowhere.Trunk"],
        "loss=custom": ["loss.target=nowhere.Loss"],
        "protocol=lfw": ["protocol.pairs=nowhere/pairs.txt"],
    }
    return [f"{name}={choice}", *needed.get(f"{name}={choice}", [])]


def _key(draw: random.Random, keys: list[str]) -> str:
    return draw.choice(keys)


def _section(draw: random.Random, keys: list[str]) -> str:
    return draw.choice(keys).rpartition(".")[0] or draw.choice(keys)


def _word(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randrange(1, 8)))


def _choice(draw: random.Random) -> str:
    known = [choice for choices in groups().values() for choice in choices]
    return draw.choice(
        (draw.choice(known), _misspelled(draw, draw.choice(known)), draw.choice(TEXTS), _word(draw))
    )


def _misspelled(draw: random.Random, text: str) -> str:
    """At edit distance one or two."""
    for _ in range(draw.randrange(1, 3)):
        at = draw.randrange(len(text) + 1)
        match draw.randrange(4):
            case 0:
                text = text[:at] + draw.choice(string.ascii_lowercase) + text[at:]
            case 1 if len(text) > 1:
                text = text[: at - 1] + text[at:] if at else text[1:]
            case 2 if len(text) > 1:
                at = min(at, len(text) - 2)
                text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
            case _:
                text = text[:at] + draw.choice(string.ascii_letters + "._/-") + text[at + 1 :]
    return text


def _nested(draw: random.Random, key: str, depth: int) -> str:
    return f"{key}={_garbage(draw, 0)}"


def _garbage(draw: random.Random, depth: int) -> str:
    if depth > 4 or draw.random() < 0.3:
        return draw.choice((*NUMBERS[:20], "a", "null", "true", "''"))
    inner = [_garbage(draw, depth + 1) for _ in range(draw.randrange(0, 4))]
    if draw.random() < 0.5:
        return f"[{','.join(inner)}]"
    return f"{{{','.join(f'{_word(draw)}:{each}' for each in inner)}}}"


def any_json(draw: random.Random, depth: int = 0) -> Any:
    """A JSON value of any kind."""
    leaf: list[Any] = [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        10**30,
        "",
        "a",
        "\ud800",
        "***",
    ]
    if depth > 3 or draw.random() < 0.5:
        return draw.choice([*leaf, "é" * 50, "../..", "${oc.env:HOME}"])
    if draw.random() < 0.5:
        return [any_json(draw, depth + 1) for _ in range(draw.randrange(0, 4))]
    return {_word(draw): any_json(draw, depth + 1) for _ in range(draw.randrange(0, 4))}


def damaged(draw: random.Random, value: Any) -> Any:
    """A JSON value with something in it replaced, left out, or put in."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        match draw.randrange(5):
            case 0:
                return {key: item for key, item in value.items() if key != name}
            case 1:
                return {**value, _misspelled(draw, name): any_json(draw)}
            case _:
                return {**value, name: damaged(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], damaged(draw, value[at]), *value[at + 1 :]]
    return any_json(draw)
