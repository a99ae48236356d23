"""Finished parts of a file of embeddings, beside it, so that a killed job does not start over."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.index.embedding_writer import EmbeddingWriter
from distmetric.inference.images import BadImages
from distmetric.locations import open_location, put_in_place

_MANIFEST = "manifest.json"
_ABOUT = b"part"


class EmbeddedPart(NamedTuple):
    """A part that is done.

    Attributes:
        number: Which one, from 0.
        rows: Its embeddings, as `embedding_batch` gives them; may be empty.
        bad: (path, reason) of its images that cannot be read.
    """

    number: int
    rows: pa.RecordBatch
    bad: BadImages


class PartStore:
    """The folder `OUT.parts` with one Arrow file per finished part, and the settings that they were made with.

    Args:
        out: The file of embeddings that the parts are for; path or URI.
        settings: Parts are only good for one job with the same ones.
        schema: Of the rows.

    Raises:
        InputError: If the URI cannot be understood.
    """

    def __init__(self, out: str, settings: Mapping[str, Any], schema: pa.Schema) -> None:
        self._out, self._settings, self._schema = out, dict(settings), schema
        self._filesystem, path = open_location(out)
        self._folder = f"{path}.parts"

    def open(self, fresh: bool) -> dict[int, int]:
        """Make the folder, or find what an earlier job left in it.

        Args:
            fresh: Whether to delete that instead.

        Returns:
            Rows of each part that is there and intact, by its number.

        Raises:
            InputError: If the parts there are of other settings.
            ResourceError: If the folder cannot be written.
        """
        if fresh:
            self.remove()
        try:
            if not self._settings_there():
                self.remove()
                self._filesystem.create_dir(self._folder, recursive=True)
                self._write(_MANIFEST, json.dumps(self._settings, indent=1).encode())
        except OSError as error:
            raise self._unwritable(error) from None
        found = {}
        for number in self._numbers():
            try:
                found[number] = self._size(number)
            except (OSError, pa.ArrowException, LookupError, ValueError):
                self._filesystem.delete_file(self._path(number))
        return found

    def add(self, part: EmbeddedPart) -> None:
        """Keep a part; it is there completely or not at all.

        Raises:
            ResourceError: If it cannot be written.
        """
        about = {"number": part.number, "rows": part.rows.num_rows, "bad_images": part.bad}
        schema = self._schema.with_metadata({_ABOUT: json.dumps(about).encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(part.rows.columns, schema=schema))
        try:
            self._write(_name(part.number), sink.getvalue())
        except OSError as error:
            raise self._unwritable(error) from None

    def read(self, number: int) -> EmbeddedPart:
        """A part that was kept.

        Raises:
            ResourceError: If it cannot be read.
        """
        try:
            with self._filesystem.open_input_file(self._path(number)) as stream:
                file = pa.ipc.open_file(stream)
                batch = file.get_batch(0).replace_schema_metadata(self._schema.metadata)
                batch.validate(full=True)
                bad = json.loads(file.schema.metadata[_ABOUT])["bad_images"]
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise ResourceError(
                f"out={self._out}: {self._path(number)} cannot be read ({reason}): delete it, and start the job "
                "again to have it made again"
            ) from None
        return EmbeddedPart(number, batch, [(path, reason) for path, reason in bad])

    def join(self, count: int) -> tuple[int, BadImages]:
        """Put parts 0 .. count - 1 together into the file, holding one of them at a time, and delete them.

        Returns:
            Rows of the file, and what could not be read.

        Raises:
            ResourceError: If the file cannot be written.
        """
        rows, bad = 0, []
        with EmbeddingWriter(self._out, self._schema) as writer:
            for number in range(count):
                part = self.read(number)
                bad += part.bad
                rows += part.rows.num_rows
                if part.rows.num_rows:
                    writer.write(part.rows)
        self.remove()
        return rows, bad

    def remove(self) -> None:
        """Delete the parts, and the folder if nothing else is in it."""
        others = 0
        for info in self._listed():
            if info.base_name == _MANIFEST or re.fullmatch(r"\.?part_\d+\.arrow.*", info.base_name):
                self._filesystem.delete_file(info.path)
            else:
                others += 1
        if not others and self._filesystem.get_file_info(self._folder).type == fs.FileType.Directory:
            self._filesystem.delete_dir(self._folder)

    def _settings_there(self) -> bool:
        """Whether the folder has parts of these settings; False if it has none at all."""
        try:
            with self._filesystem.open_input_stream(f"{self._folder}/{_MANIFEST}") as stream:
                kept = json.loads(stream.read())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except ValueError:
            kept = {}
        other = [name for name in self._settings if kept.get(name) != self._settings[name]]
        if other:
            raise InputError(
                f"out={self._out}: the parts in {self._out}.parts are of a job with another {', '.join(other)}: "
                "start that job again, name another out, or set fresh=true to delete them"
            )
        return True

    def _size(self, number: int) -> int:
        """Rows of a part, from its end, which a file that was cut off has not."""
        with self._filesystem.open_input_file(self._path(number)) as stream:
            schema = pa.ipc.open_file(stream).schema
        about = json.loads(schema.metadata[_ABOUT])
        if about["number"] != number or schema.names != self._schema.names:
            raise ValueError("it is another part")
        return int(about["rows"])

    def _listed(self) -> list[Any]:
        found: list[Any] = self._filesystem.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        return found

    def _numbers(self) -> list[int]:
        names = (re.fullmatch(r"part_(\d+)\.arrow", info.base_name) for info in self._listed())
        return sorted(int(match.group(1)) for match in names if match)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{_name(number)}"

    def _write(self, name: str, data: Any) -> None:
        with (
            put_in_place(self._filesystem, f"{self._folder}/{name}") as target,
            self._filesystem.open_output_stream(target) as stream,
        ):
            stream.write(data)

    def _unwritable(self, error: OSError) -> ResourceError:
        reason = " ".join(str(error).split())
        return ResourceError(
            f"out={self._out}: {self._out}.parts cannot be written ({reason}); finished parts are kept: "
            "free space or fix access, then start the job again"
        )


def _name(number: int) -> str:
    return f"part_{number:08d}.arrow"
