"""What `run.json` in the folder of a run says: enough to resume the run, and to report on it, from nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from distmetric.errors import InputError, ResourceError
from distmetric.locations import absolute, read_document, reason, write_document
from distmetric.secrets import masked

RUN_FILE = "run.json"
_NEEDED = {"name": str, "config": dict, "fingerprint": str, "version": str}
_KNOWN = {**_NEEDED, "tracking_uri": str | None, "run_id": str | None, "command": str, "environment": dict}


@dataclass(frozen=True)
class RunFolder:
    """What `run.json` in a run's folder says.

    Args:
        location: The folder, an absolute path or a URI.
        name: Name of the run.
        config: The configuration it was started with, resolved, as plain containers.
        fingerprint: Of the data it trains on.
        version: The distmetric that started it.
        tracking_uri: Where it is tracked, or None.
        run_id: Its identity there, or None.
        command: The command line that started it; empty in runs of older versions.
        environment: Versions and machine it was started with, by name; empty in runs of older versions.
    """

    location: str
    name: str
    config: dict[str, Any]
    fingerprint: str
    version: str
    tracking_uri: str | None = None
    run_id: str | None = None
    command: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write `run.json`, making the folder; what is secret is masked, and asked for again when the run is resumed.

        Raises:
            ResourceError: If it cannot be written.
        """
        try:
            write_document(f"{self.location}/{RUN_FILE}", masked(asdict(self)))
        except OSError as error:
            raise ResourceError(
                f"{self.location} cannot be written ({reason(error)}): free space, fix access, or set another "
                "output_dir"
            ) from None


def read_run(location: str, key: str = "resume") -> RunFolder:
    """Read a run's folder.

    Args:
        location: The folder, a path or URI.
        key: The setting that named it, for the message.

    Raises:
        InputError: If it is not the folder of a run.
    """
    try:
        content = read_document(f"{location}/{RUN_FILE}")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{key}={location} is not the folder of a run: it has no {RUN_FILE}") from None
    except OSError as error:
        raise InputError(f"{location}/{RUN_FILE} cannot be read ({reason(error)}): fix access") from None
    except ValueError as error:
        content, why = {}, f" ({reason(error)})"
    else:
        why = ""
    known = {name: content[name] for name in _KNOWN if name in content}
    fits = all(isinstance(value, _KNOWN[name]) for name, value in known.items())
    if not fits or not _NEEDED.keys() <= known.keys():
        raise InputError(
            f"{location}/{RUN_FILE} is damaged{why}: bring it back from a copy (changed by hand, it must lose its "
            '"check"), or start a new run; its checkpoints are as good as before'
        )
    return RunFolder(**{**known, "location": absolute(location)})
