"""The errors a user can cause: one line that names what was wrong and how to mend it, and an exit code.

Every job turns a `UserError` into that one line on stderr and exits with its code; anything else is a bug of
ours and keeps its traceback.
"""


class UserError(Exception):
    """Something the user can mend; the message is one line naming the key or file, the value and the fix."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration key is unknown, has the wrong type, or contradicts another one."""


class InputError(UserError):
    """A file, catalog, image or checkpoint that was handed in cannot be used."""


class ResourceError(UserError):
    """The machine or the cluster lacks what was asked for (CPUs, GPUs, packages, disk, servers)."""

    exit_code = 3


class NonFiniteError(UserError):
    """Training produced a loss or gradient that is not a finite number."""

    exit_code = 4
