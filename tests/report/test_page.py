"""The page for a browser: complete in one file, tables as tables, and nothing that a name can do."""

import base64
from html.parser import HTMLParser

import numpy as np
import pytest

from ptm_ray.report.page import page


class Seen(HTMLParser):
    """Tags that were opened and not closed, cells of tables, pictures, and the text."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.opened, self.cells, self.pictures, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)
        self.text += data


@pytest.fixture
def seen(tmp_path):
    """What a reader of the page of a Markdown text sees."""

    def see(text, title="cells"):
        found = Seen(page(title, text, tmp_path))
        assert not found.open
        return found

    return see


def test_tables_are_tables(seen):
    found = seen("| a | b |\n|---|---|\n| 1 ± 0.1 | x \\| y |")
    assert found.cells == ["a", "b", "1 ± 0.1", "x | y"]


def test_pictures_are_inside(seen, tmp_path):
    held = np.random.default_rng(0).bytes(99)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "grid.png").write_bytes(held)
    (picture,) = seen("![eight **kinds** of cells](set/grid.png)").pictures
    kind, _, inside = picture["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(inside) == held
    assert picture["alt"] == "eight kinds of cells"


def test_html_in_names_is_shown_and_does_nothing(seen):
    name = "<script>alert(1)</script>"
    found = seen(f"# {name}\n\n{name}\n\n| {name} |\n|---|\n| [x](javascript:alert) |", title=name)
    assert not {"script", "a"} & set(found.opened)
    assert found.text.count(name) == 4
