"""A manifest describes other layouts; its mistakes are told with file, line and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.errors import InputError
from image_sources import FILES, make_folder, make_parquet, make_zip, png

MANIFEST = """path,label,split,group,camera,attribute.color
./pics/1.png,car,train,vehicle,3,red
pics/2.png,"bus, long",test,vehicle,,
pics/3.bin,car,train,vehicle,0,
pics/gone.png,car,train,vehicle,0,
"""


def test_a_manifest_describes_other_layouts(tmp_path: Path, out: Path) -> None:
    files = {f"pics/{i}.png": png(i) for i in (1, 2, 4)} | {"pics/3.bin": png(3)}
    (tmp_path / "m.csv").write_text("\ufeff" + MANIFEST)
    for source in (make_folder(tmp_path / "in", files), make_zip(tmp_path / "in.zip", files)):
        result = ingest([source], out, manifest=str(tmp_path / "m.csv"), split_by="given")
        catalog = Catalog.open(out)
        assert catalog.label_names == ["bus, long", "car"]
        assert [catalog.source_path(row)[-5:] for row in range(3)] == ["1.png", "2.png", "3.bin"]
        assert catalog.cameras is not None
        assert catalog.cameras.tolist() == [3, -1, 0]
        assert catalog.attribute("color").tolist() == ["red", None, None]
        assert set(catalog.groups) == {"vehicle"}
        assert result.splits == {"test": 1, "train": 2}
        assert result.bad_images == (("pics/gone.png", "named in the manifest, but in no source"),)
        assert result.files_ignored == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\nx", "the column label is missing; it has: path"),
        ("", "the column path is missing; it has: none"),
        ("path,label,colour\n", "unknown column 'colour'"),
        ("path,label\na.png,\n", "m.csv, line 2: label is empty"),
        ("path,label\na.png,x\na.png,x\n", "line 3: path 'a.png' is given twice"),
        ("path,label\n../a.png,x\n", "leads outside the source"),
        ("path,label,camera\na.png,x,c1\n", "camera='c1' is no whole number"),
        ("path,label\na.png,x,y\n", "more fields than the header"),
    ],
)
def test_manifests_with_mistakes(tmp_path: Path, out: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        ingest([make_folder(tmp_path / "in", FILES)], out, manifest=str(tmp_path / "m.csv"))
    assert "\n" not in str(caught.value)
    assert not out.parent.exists()


def test_a_manifest_that_is_not_there_or_not_text(tmp_path: Path, out: Path) -> None:
    source = make_folder(tmp_path / "in", FILES)
    with pytest.raises(InputError, match=r"m\.csv: cannot be read"):
        ingest([source], out, manifest=str(tmp_path / "m.csv"))
    (tmp_path / "m.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(InputError, match=r"it has to be CSV in UTF-8"):
        ingest([source], out, manifest=str(tmp_path / "m.csv"))


def test_paths_and_labels_may_have_line_breaks(tmp_path: Path, out: Path) -> None:
    """With a byte order mark, and lines that end as on Windows."""
    source = make_folder(tmp_path / "in", {"a\n1.png": png(1), "a\r\n2.png": png(2)})
    text = 'path,label\r\n"a\n1.png","one\ntwo"\r\n"a\r\n2.png",three\r\n'
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert ingest([source], out, manifest=str(tmp_path / "m.csv")).rows == 2
    assert Catalog.open(out).label_names == ["one\ntwo", "three"]


def test_a_manifest_cannot_describe_parquet(tmp_path: Path, out: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label\n")
    source = make_parquet(tmp_path / "in.parquet", {"image": [png(1)], "label": [1]})
    with pytest.raises(InputError, match="a manifest cannot describe Parquet"):
        ingest([source], out, manifest=str(tmp_path / "m.csv"))
