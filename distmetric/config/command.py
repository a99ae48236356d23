"""What all jobs have in common: overrides in, one JSON line out, a user's mistake in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distmetric.config.compose import compose, groups, groups_of, to_yaml
from distmetric.errors import UserError


def run_command(
    config_name: str,
    doc: str,
    main: Callable[[list[str]], Mapping[str, Any]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job on its command line.

    `--help` prints the job's docstring and the choices of its groups, `--cfg` the composed configuration as
    YAML, `--cfg json` as JSON. The last line on standard output is the result as one JSON object.

    Args:
        config_name: The file of conf/ that the job's configuration is composed from.
        doc: The job's docstring.
        main: The job: overrides in, result out.
        arguments: The command line; that of this process by default.

    Returns:
        The exit code: 0, or that of the user's mistake (2 for input and settings, 3 for the machine, 4 for a
        loss that is not finite).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = ("--help", "-h", "--cfg", *(("json", "yaml") if "--cfg" in arguments else ()))
    overrides = [argument for argument in arguments if argument not in flags]
    try:
        if "--help" in arguments or "-h" in arguments:
            print(_help(config_name, doc))
            return 0
        if "--cfg" in arguments:
            composed = compose(config_name, overrides)
            print(json.dumps(composed, indent=1) if "json" in arguments else to_yaml(composed).rstrip())
            return 0
        result = main(overrides)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    sys.stderr.flush()
    print(json.dumps(result), flush=True)
    return 0


def _help(config_name: str, doc: str) -> str:
    lines = [f"  {name:<12} {' | '.join(groups()[name])}" for name in groups_of(config_name)]
    chosen = ["", "Groups (NAME=CHOICE):", *lines] if lines else []
    return "\n".join([doc.strip(), *chosen, "", "Any leaf: KEY=VALUE; --cfg prints them all."])
