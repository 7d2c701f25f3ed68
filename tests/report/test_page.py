"""The page for a browser: complete in one file, tables as tables, and nothing that a name can do."""

import base64
import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest

from ptm_ray.data.dataset import Split
from ptm_ray.report.page import page
from ptm_ray.report.run import write_report
from ptm_ray.report.tables import COLUMNS
from ptm_ray.store.checkpoints import RunFolder
from tests.small import small_dataset
from tests.test_api import finished

COSTS = (
    *("experts", "buffer_bytes", "experts_s", "distillation_s", "total_s"),
    *("outer_steps", "skipped_updates", "peak_memory_bytes"),
)


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
        found = Seen(page(title, text, tmp_path, ("set/grid.png",)))
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


def test_a_picture_that_is_none_of_the_pages_is_shown_as_it_is_written(seen, tmp_path):
    (tmp_path / "secret").write_text("of this machine")
    named = [f"![x]({name})" for name in ("secret", "gone", tmp_path / "secret", "set/../secret", "https://x.y/z.png")]
    found = seen("\n\n".join([*named, "| a |\n|---|\n| ![<b>](secret) |"]))
    assert not found.pictures
    assert all(text in found.text for text in [*named, "![<b>](secret)"])
    assert "b" not in found.opened


#: Classes as a stranger's npz may call them, one of whose pictures is on the page.
NAMES = [
    "![x](secret)",
    "![x](set/grid.png) [a](https://x.y)",
    "<https://x.y> <b>&amp;</b>",
    "`a` *b* _c_ __d__ e_f ~~g~~",
    "$\\frac$ \\ \\| a|b",
    "# a\n\n# b",
]


def page_of_run(folder, names):
    """The page of a run whose dataset and classes are called so, as it is written and as it is seen."""
    data, folder = small_dataset(), RunFolder(folder)
    train = Split(data.train.images, np.arange(len(data.train)) % len(names))
    named = dataclasses.replace(data, name=names[0], class_names=names, train=train)
    metrics = [*COLUMNS, *(f"recall_{label}" for label in range(len(names)))]
    scored = {metric: {"mean": 0.5, "std": 0.1, "n": 3} for metric in metrics}
    ran = {"rows": [], "validation": [], "cycles": [], "kept_outer_step": 0, "cost": dict.fromkeys(COSTS, 1.0)}
    write_report(folder, finished("a", named), {"scores": {"synthetic": scored}, **ran})
    written = (folder.root / "report.html").read_text()
    return written, Seen(written)


def test_no_name_does_anything_on_the_page_of_a_run_or_ends_it(tmp_path):
    (tmp_path / "secret").write_bytes(b"of this machine")
    written, found = page_of_run(tmp_path, NAMES)
    assert base64.b64encode(b"of this machine").decode() not in written
    _, harmless = page_of_run(tmp_path, ["a", "b", "c", "d", "e", "f"])
    assert found.opened == harmless.opened
    assert len(found.pictures) == 2
    shown = [" ".join(name.split()) for name in NAMES]
    assert set(shown) <= set(found.cells)
    assert f"6 classes ({', '.join(shown)}), made by" in found.text
