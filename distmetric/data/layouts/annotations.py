"""What a published data set says about its images: files of the source, or beside it, that list them."""

from __future__ import annotations

import io
import posixpath
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distmetric.data.decode import BadImageError
from distmetric.data.entries import Tree, read_limited
from distmetric.data.items import Labels
from distmetric.data.locations import clean_name, first_line, open_file_system, readable, without_secrets
from distmetric.errors import InputError
from distmetric.regular_files import check_file

_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Annotation:
    """A file that lists images.

    Attributes:
        shown: How to name it to people.
        folder: The folder of the source that it lies in, with its slash; None where it is no file of the source.
        data: Its bytes.
    """

    shown: str
    folder: str | None
    data: bytes

    def rows(self, columns: Sequence[str], skip: int = 0) -> Iterator[tuple[str, dict[str, str]]]:
        """The lines of a text file, whose fields are separated by spaces.

        Args:
            columns: Names of the fields, all of which every line has; the last one may have spaces in it.
            skip: Lines at the top that are none of these.

        Yields:
            How to name the line to people, and its fields by their names. Empty lines are left out.

        Raises:
            InputError: The file is not UTF-8, or a line has too few fields.
        """
        for number, line in enumerate(self._lines()[skip:], skip + 1):
            fields = line.split(maxsplit=len(columns) - 1)
            where = f"{self.shown}, line {number}"
            if not fields:
                continue
            if len(fields) < len(columns):
                raise InputError(
                    f"{where}: has {len(fields)} of the {len(columns)} fields {' '.join(columns)}; get the file again"
                )
            yield where, dict(zip(columns, (field.strip() for field in fields), strict=True))

    def header(self, number: int) -> list[str]:
        """The fields of a line, numbered from 0."""
        lines = self._lines()
        return lines[number].split() if number < len(lines) else []

    def _lines(self) -> list[str]:
        try:
            return self.data.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{self.shown}: is not UTF-8; get the file again") from None

    def matlab(self, variable: str) -> Any:
        """A variable of a MATLAB file: structs as objects, cells and struct arrays as arrays of objects.

        Raises:
            InputError: The file is no MATLAB file, or does not have it.
        """
        from scipy.io import loadmat  # takes half a second, and few ask for it

        try:
            with warnings.catch_warnings(action="ignore"):
                found = loadmat(
                    io.BytesIO(self.data), variable_names=[variable], squeeze_me=True, struct_as_record=False
                )
        except Exception as error:  # damaged files make it raise almost anything
            raise InputError(f"{self.shown}: is no usable MATLAB file ({first_line(error)})") from None
        if variable not in found:
            raise InputError(f"{self.shown}: has no variable {variable}; get the file again")
        return found[variable]


class LayoutFiles:
    """The names of a source's files, and those files that say what the others show.

    Args:
        tree: The source.
        annotation: File beside the source that stands for the one of the source; a path or URI.

    Attributes:
        shown: How to name the source to people.
        names: Of the source's files, sorted; those that lead out of it are left out.
    """

    def __init__(self, tree: Tree, annotation: str | None = None) -> None:
        self.shown = tree.shown
        self._tree, self._given = tree, annotation
        self._handles = {entry.name: entry.handle for entry in tree.entries if entry.safe}
        self.names = list(self._handles)

    def annotation(self, name: str) -> Annotation:
        """The file that was given beside the source, else the source's only one of a name.

        Args:
            name: Of the file, or the end of its path.

        Raises:
            InputError: There is none or more than one, or it cannot be read.
        """
        found = self.annotation_if_any(name)
        if found is None:
            raise InputError(
                f"{self.shown}: has no file {name}; add it"
                + (", or name it as manifest=FILE" if self._given is None else "")
            )
        return found

    def annotation_if_any(self, name: str) -> Annotation | None:
        """As `annotation`, but None where there is no such file."""
        if self._given is not None:
            return _beside(self._given)
        found = [each for each in self.names if each == name or each.endswith(f"/{name}")]
        if not found:
            return None
        if len(found) > 1:
            raise InputError(f"{self.shown}: has two files {name} ({found[0]} and {found[1]}); remove one")
        shown = f"{self.shown}/{found[0]}"
        try:
            data = self._tree.read(self._handles[found[0]], _MOST_BYTES)
        except BadImageError as error:
            raise InputError(f"{shown}: cannot be read ({error}); get the file again") from None
        return Annotation(shown, found[0][: len(found[0]) - len(name)], data)

    def folder_of(self, paths: Iterable[str], annotation: Annotation) -> str:
        """The folder of the source that listed paths start from.

        Args:
            paths: Listed paths.
            annotation: What lists them.

        Returns:
            The folder with its slash, or "".

        Raises:
            InputError: None of them is in the source.
        """
        by_end: dict[str, list[str]] = {}
        for name in self.names:
            by_end.setdefault(posixpath.basename(name), []).append(name)
        example = ""
        for path in paths:
            example = example or path
            for name in by_end.get(posixpath.basename(path), ()):
                if name == path or name.endswith(f"/{path}"):
                    return name[: len(name) - len(path)]
        raise InputError(
            f"{self.shown}: has none of the images that {annotation.shown} lists (the first is {readable(example)!r}); "
            "are they of one data set?"
        )


def add(found: dict[str, Labels], path: str, labels: Labels, where: str) -> None:
    """Put what a list says about an image beside what it says about others.

    Raises:
        InputError: The image was listed before.
    """
    if path in found:
        raise InputError(f"{where}: {path} is listed twice; get the file again")
    found[path] = labels


def listed_path(path: str, where: str) -> str:
    """A path as a list gives it, cleaned.

    Raises:
        InputError: It leads out of the source.
    """
    clean, safe = clean_name(path)
    if not safe or not clean:
        raise InputError(f"{where}: path {path!r} leads outside the source; get the file again")
    return readable(clean)


def whole_number(text: str, where: str, what: str) -> int:
    """A number from 1 on that a list gives as text.

    Raises:
        InputError: It is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise InputError(f"{where}: {what} {text!r} is no number from 1 on; get the file again")
    return int(text)


def _beside(source: str) -> Annotation:
    shown = without_secrets(source)
    fs, path = open_file_system(source, shown)
    try:
        check_file(fs, path)
        with fs.open_input_stream(path) as stream:
            return Annotation(shown, None, read_limited(stream, _MOST_BYTES))
    except (OSError, BadImageError) as error:
        raise InputError(f"{shown}: cannot be read ({first_line(error)})") from None
