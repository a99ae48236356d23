"""Arrays in a file: back as they were, or one clear line; never half a file under its name."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.index import arrays as module
from distmetric.index.arrays import read_arrays, write_arrays
from distmetric.locations import put_in_place

DTYPES = ["bool", "int8", "int32", "int64", "uint8", "float16", "float32", "float64"]
ARRAYS = {
    "numbers": np.arange(12, dtype=np.int32).reshape(3, 4),
    "nothing": np.ones((2, 0), dtype=np.float32),
    "flags": np.array([True, False]),
}


@settings(deadline=None, max_examples=60)
@given(
    arrays=st.dictionaries(
        st.text("abc_", min_size=1, max_size=4),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: of_numpy.arrays(dtype, of_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0))
        ),
        max_size=4,
    ),
    meta=st.dictionaries(
        st.text(max_size=3), st.one_of(st.integers(), st.text(), st.floats(allow_nan=False))
    ),
)
def test_arrays_come_back_as_they_were(tmp_path_factory, arrays, meta) -> None:
    location = str(tmp_path_factory.mktemp("arrays") / "file.arrow")
    write_arrays(location, arrays, meta)
    read, read_meta = read_arrays(location)
    assert list(read) == list(arrays)
    assert read_meta == meta
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)
        assert not read[name].flags.writeable


def test_numbers_that_are_not_finite_and_transposed_arrays_come_back(tmp_path) -> None:
    array = np.array([[0.0, -0.0, np.inf], [np.nan, -np.inf, 1e-45]], dtype=np.float32).T
    write_arrays(f"{tmp_path}/a", {"x": array}, {})
    assert read_arrays(f"{tmp_path}/a")[0]["x"].tobytes() == array.tobytes()


def test_a_file_that_is_replaced_stays_readable_for_who_has_it(tmp_path) -> None:
    write_arrays(f"{tmp_path}/a", {"x": np.arange(100_000)}, {})
    held = read_arrays(f"{tmp_path}/a")[0]["x"]
    write_arrays(f"{tmp_path}/a", {"x": np.zeros(3)}, {})
    (tmp_path / "a").unlink()
    assert held.sum() == 99_999 * 50_000
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path) -> None:
    path = tmp_path / "a"
    arrays = {"x": np.random.default_rng(0).normal(size=(40, 5)), **ARRAYS}
    write_arrays(str(path), arrays, {"steps": 12345, "name": "snapshot"})
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            read, meta = read_arrays(str(path))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        else:
            assert meta == {"steps": 12345, "name": "snapshot"}
            for name, array in arrays.items():
                np.testing.assert_array_equal(read[name], array, strict=True)
    assert refused > 1600 / 5  # all that fall on the numbers of x


def test_every_truncated_file_is_refused(tmp_path) -> None:
    path = tmp_path / "a"
    write_arrays(str(path), ARRAYS, {"x": 1})
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="is damaged or not one of ours") as error:
            read_arrays(str(path))
        assert "\n" not in str(error.value)


def test_flipped_bytes_are_refused_or_read_but_never_a_traceback(tmp_path) -> None:
    path, draw, refused = tmp_path / "a", random.Random(0), 0
    write_arrays(str(path), ARRAYS, {"x": 1})
    whole = path.read_bytes()
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 2, 8])):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_arrays(str(path))
        except InputError:
            refused += 1
    assert 100 < refused < 400


def foreign_tables() -> dict[str, pa.Table]:
    """What others may have written."""
    table = pa.table({"x": [1, 2]})
    lists = pa.table({"x": pa.array([[1, 2]], pa.large_list(pa.int64()))})
    other = lists.replace_schema_metadata({b"distmetric": b"{}"})
    return {"numbers": table, "lists": lists, "other": other}


@pytest.mark.parametrize("name", ["numbers", "lists", "other"])
def test_arrow_files_of_others_are_refused(name, tmp_path) -> None:
    table = foreign_tables()[name]
    with pa.ipc.new_file(f"{tmp_path}/a", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="not one of ours"):
        read_arrays(f"{tmp_path}/a")


def test_missing_files_and_folders_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"a does not exist$"):
        read_arrays(f"{tmp_path}/a")
    with pytest.raises(InputError, match="is damaged or not one of ours"):
        read_arrays(str(tmp_path))


def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ResourceError, match=r"file/a cannot be written .*: free space or fix access$"
    ) as error:
        write_arrays(f"{tmp_path}/file/a", ARRAYS, {})
    assert "\n" not in str(error.value)


FULL = """
import resource, signal, sys
import numpy as np
from distmetric.errors import ResourceError
from distmetric.index.arrays import write_arrays

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write_arrays(sys.argv[1], {"x": np.arange(10)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_arrays(sys.argv[1], {"x": np.arange(100_000)}, {})
except ResourceError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, f"{tmp_path}/a"], capture_output=True, text=True, timeout=300, check=True
    )
    assert "/a cannot be written (" in done.stdout
    assert done.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert read_arrays(f"{tmp_path}/a")[0]["x"].tolist() == list(range(10))


KILLED = """
import os, signal, sys
from contextlib import suppress
from pathlib import Path
import numpy as np
from distmetric.index.arrays import write_arrays

Path.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
write_arrays(sys.argv[1], {"x": np.arange(10)}, {})
"""


def test_a_writer_that_is_killed_leaves_no_file_under_the_name(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, f"{tmp_path}/a"], timeout=300, check=False)
    assert done.returncode == -9
    with pytest.raises(InputError, match="does not exist"):
        read_arrays(f"{tmp_path}/a")
    write_arrays(f"{tmp_path}/a", {"x": np.arange(3)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_fails_inside_leaves_nothing_behind(tmp_path) -> None:
    with suppress(KeyError), put_in_place(fs.LocalFileSystem(), f"{tmp_path}/a") as part:
        Path(part).write_text("half")
        raise KeyError
    assert part == f"{tmp_path}/a.part"
    assert list(tmp_path.iterdir()) == []


def test_other_file_systems_write_in_place(tmp_path, monkeypatch) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(module, "open_location", lambda location: (store, location.removeprefix("store://")))
    write_arrays("store://folder/a", ARRAYS, {"x": [1]})
    read, meta = read_arrays("store://folder/a")
    assert meta == {"x": [1]}
    np.testing.assert_array_equal(read["numbers"], ARRAYS["numbers"], strict=True)
    with pytest.raises(InputError, match="store://folder/b does not exist"):
        read_arrays("store://folder/b")


def test_no_pickle_is_in_a_file(tmp_path) -> None:
    write_arrays(f"{tmp_path}/a", ARRAYS, {"x": 1})
    schema = pa.ipc.open_file(f"{tmp_path}/a").schema
    assert json.loads(schema.metadata[b"distmetric"]) == {"x": 1}
    assert all(pa.types.is_primitive(field.type.value_type) for field in schema)
    with pytest.raises(pa.ArrowInvalid):
        write_arrays(f"{tmp_path}/b", {"x": np.array([object()])}, {})
