"""Secrets kept out of what is written: logs, error lines, parameters, artifacts, reports.

Known are the forms of common keys, settings and query parameters whose names say that they are secret, passwords in
URIs, and the values of this process's environment variables with such names. A secret that looks like nothing in
particular and is in no such place is not recognized: keep it in the environment.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar, cast
from urllib.parse import quote

MASK = "***"

T = TypeVar("T")

# Shorter values are more likely to be words than secrets, and would be found everywhere.
_SHORTEST = 8

_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:\w*(?:TOKEN|SECRET|PASSWORD|PASSPHRASE|CREDENTIAL)S?|PASSWD|\w*(?<!MON)KEYS?|PAT|SAS)(?:_|$)",
    re.IGNORECASE,
)
# These name a file, a place or a way, not the secret itself.
_NO_SECRET = re.compile(
    r"_(?:FILE|PATH|DIR|MODE|URL|URI|ENDPOINT|NAME|TYPE|LAYOUT)$|^GOOGLE_APPLICATION_CREDENTIALS$",
    re.IGNORECASE,
)

# What a setting or a line of an .env file is called whose value is secret.
_NAME = (
    r"(?:[\w.-]*[_.-])?(?:passwords?|passwd|passphrase|secrets?|(?:access|api|auth|refresh|session)?token"
    r"|apikey|api[_-]key|(?:access|account|private|secret|shared|signing)[_-]?key|credentials?)"
)
_SECRET_SETTING = re.compile(_NAME, re.IGNORECASE)

# Of what each of them finds, its one group stays.
_FORMS = [
    re.compile(form)
    for form in (
        r"()-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"()(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])",
        r"()(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}",
        r"()(?<![A-Za-z0-9])(?:gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,})",
        r"()(?<![\w-])sk-(?=[\w-]{0,200}\d)(?=[\w-]{0,200}[A-Za-z])[\w-]{20,}",
        r"()(?<![\w-])(?:xox[abeprs]-[\w-]{10,}|AIza[\w-]{35}|dapi[0-9a-f]{32})(?![\w-])",
        r"()(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
        r"((?i:\bbearer)\s+)(?:(?=\S{0,200}\d)[\w.~+/=-]{8,}|[\w.~+/=-]{20,})",
        r"((?i:\bauthorization)[\"']?\s*[:=]\s*[\"']?(?i:basic|token)\s+)[\w.~+/=-]{8,}",
        r"(://[^\s/:@?#\"'<>]*:)[^\s/?#\"'<>]+(?=@)",
        r"((?i:[?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|key|token"
        r"|awsaccesskeyid))=)[^\s&;#\"'<>]+",
        rf"((?<![\w.-])(?i:{_NAME})\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\s\"'&;,\\]{{8,}}",
    )
]
# A secret access key of AWS has no mark but its length, and how often neighbors in it are of different kinds: 25 of 39
# on average. Words and paths change less often, or at many slashes.
_AWS_SECRET = re.compile(r"(?<![\w/+.-])[A-Za-z0-9+][A-Za-z0-9/+]{39}(?![\w/+=.-])")
_AWS_CHANGES, _AWS_SLASHES = 15, 3


def masked(value: T) -> T:
    """Replace all that is secret in a value by ***.

    Args:
        value: Text, or mappings, lists, tuples and sets of them, nested. Anything else is handed back as it is.

    Returns:
        The same, with the secrets in texts and keys replaced; under keys that say so ("api_key") the whole text is.

    Cost: about 20 microseconds for a short text, linear in its length.
    """
    return cast(T, _masked(value, _environment_pattern()))


def is_masked(value: Any) -> bool:
    """Whether `masked` has taken something out of a value, or of one within it."""
    if isinstance(value, Mapping):
        return any(map(is_masked, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(is_masked, value))
    return isinstance(value, str) and MASK in value


def mask_logs() -> None:
    """Have all log records of this process masked, tracebacks included, whoever makes and whoever prints them."""
    make = logging.getLogRecordFactory()
    if getattr(make, "masks", False):
        return

    def make_masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = masked(record.getMessage()), ()
        except (
            TypeError,
            ValueError,
            KeyError,
        ):  # arguments that do not fit: logging will say so, and show them
            record.msg, record.args = masked(record.msg), masked(record.args)
        if record.exc_info and record.exc_info[0] is not None:
            # What a formatter finds here it does not make itself.
            record.exc_text = masked("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make_masked.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_masked)


def _masked(value: Any, environment: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        return _masked_text(value, environment)
    if isinstance(value, Mapping):
        return {
            _masked(key, environment): MASK if _is_secret(key, item) else _masked(item, environment)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_masked(item, environment) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _is_secret(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, str)
        and len(value) >= _SHORTEST
        and _SECRET_SETTING.fullmatch(key) is not None
    )


def _masked_text(text: str, environment: re.Pattern[str] | None) -> str:
    if len(text) < _SHORTEST:
        return text
    if environment is not None:
        text = environment.sub(MASK, text)
    for form in _FORMS:
        text = form.sub(rf"\1{MASK}", text)
    return _AWS_SECRET.sub(lambda found: MASK if _is_aws_secret(found[0]) else found[0], text)


def _is_aws_secret(text: str) -> bool:
    kinds = ["a" if c.islower() else "A" if c.isupper() else "0" if c.isdigit() else "/" for c in text]
    changes = sum(kind != other for kind, other in pairwise(kinds))
    return changes >= _AWS_CHANGES and text.count("/") <= _AWS_SLASHES and {"a", "A", "0"} <= set(kinds)


def _environment_pattern() -> re.Pattern[str] | None:
    values = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and _says_secret(name)}
    return _pattern(frozenset(values)) if values else None


@lru_cache(maxsize=1024)
def _says_secret(name: str) -> bool:
    return _SECRET_VARIABLE.search(name) is not None and _NO_SECRET.search(name) is None


@lru_cache(maxsize=16)
def _pattern(values: frozenset[str]) -> re.Pattern[str] | None:
    """Finds the values as they are, and as they stand in a URI."""
    spellings = {spelling for value in values for spelling in (value.strip(), quote(value.strip(), safe=""))}
    found = sorted((each for each in spellings if len(each) >= _SHORTEST), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None
