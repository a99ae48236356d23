"""A page of ours as a browser reads it: its tags, its texts, whether they nest, and what it would ask for."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from PIL import Image


class Page(HTMLParser):
    """Collects tags with attributes and the text in them, and checks that tags nest."""

    VOID = frozenset({"meta", "img", "source", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]

    @property
    def words(self) -> str:
        """All text, as one line."""
        return " ".join(" ".join(text.split()) for _, text in self.text)


def check_offline(page: Page) -> None:
    """Nothing is loaded from elsewhere, nothing runs, and every image opens and is described."""
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"https?://|@import|url\(|javascript:", page.html)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for link in page.all("a"):
        inside = link["href"].startswith("#")
        assert not inside or link["href"][1:] in anchors
        assert inside or not re.match(r"[a-z]+:|/", link["href"])
    for image in page.all("img"):
        assert len(image["alt"]) > 3
        check_picture(image["src"])
    for source in page.all("source"):
        assert source["media"] == "(prefers-color-scheme: dark)"
        check_picture(source["srcset"])


def check_picture(address: str) -> None:
    """The data address of an image that opens."""
    kind, content = address.split(";base64,")
    raw = base64.b64decode(content, validate=True)
    if kind == "data:image/svg+xml":
        assert ElementTree.fromstring(raw).tag.endswith("svg")
    else:
        assert kind in ("data:image/png", "data:image/jpeg")
        Image.open(io.BytesIO(raw)).load()
