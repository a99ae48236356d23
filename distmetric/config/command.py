"""What all jobs have in common: overrides in, one JSON line out, a user's mistake in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distmetric.config.compose import compose, groups, groups_of, to_yaml
from distmetric.config.signals import Interrupted, interruptible
from distmetric.errors import ConfigError, StoppedError, UserError, out_of_memory
from distmetric.secrets import mask_logs, masked

_LOWER = "lower batch_size, give it fewer images at a time, or use a machine with more memory"


def run_command(
    config_name: str,
    doc: str,
    main: Callable[[list[str]], Mapping[str, Any]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job on its command line.

    `--help` prints the job's docstring and the choices of its groups, `--cfg` the composed configuration as
    YAML, `--cfg json` as JSON. The last line on standard output is the result as one JSON object. What is secret is
    masked in errors, log lines and the result; not in what --cfg prints, which is to be used.

    Args:
        config_name: The file of conf/ that the job's configuration is composed from.
        doc: The job's docstring.
        main: The job: overrides in, result out.
        arguments: The command line; that of this process by default.

    Returns:
        The exit code: 0, or that of the user's mistake (2 for input and settings, 3 for the machine, 4 for a
        loss that is not finite); 5 for a training that was asked to stop and can be resumed; 128 + the number of the
        signal (130 for Ctrl-C, 143 for SIGTERM) for anything else that one has ended.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = ("--help", "-h", "--cfg", *(("json", "yaml") if "--cfg" in arguments else ()))
    overrides = [argument for argument in arguments if argument not in flags]
    mask_logs()
    try:
        with interruptible():
            _check_text(arguments)
            if "--help" in arguments or "-h" in arguments:
                print(_help(config_name, doc))
                return 0
            if "--cfg" in arguments:
                composed = compose(config_name, overrides)
                print(json.dumps(composed, indent=1) if "json" in arguments else to_yaml(composed).rstrip())
                return 0
            result = main(overrides)
    except (MemoryError, RuntimeError) as error:
        if (shortage := out_of_memory(error, _LOWER)) is None:
            raise
        print(f"error: {shortage}", file=sys.stderr)
        return shortage.exit_code
    except UserError as error:
        kind = "" if isinstance(error, StoppedError) else "error: "
        print(f"{kind}{_plain(masked(str(error)))}", file=sys.stderr)
        return error.exit_code
    except Interrupted as signal:
        print(f"stopped on {signal}: what was complete is kept, and nothing half-written", file=sys.stderr)
        return signal.exit_code
    sys.stderr.flush()
    print(json.dumps(masked(result)), flush=True)
    return 0


def _check_text(arguments: Sequence[str]) -> None:
    """See that settings can be written down: Arrow, JSON and trackers take no names with bytes that are not UTF-8.

    Raises:
        ConfigError: Naming the first that cannot.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{argument!r} is not UTF-8: rename that file or folder") from None


def _plain(message: str) -> str:
    """One line that does nothing to a terminal, whatever names from files are in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))


def _help(config_name: str, doc: str) -> str:
    lines = [f"  {name:<12} {' | '.join(groups()[name])}" for name in groups_of(config_name)]
    chosen = ["", "Groups (NAME=CHOICE):", *lines] if lines else []
    return "\n".join([doc.strip(), *chosen, "", "Any leaf: KEY=VALUE; --cfg prints them all."])
