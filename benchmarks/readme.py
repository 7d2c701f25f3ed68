"""Puts a benchmark's tables into README and docs/results.md, between the marks that name it.

    python -m benchmarks.readme docs/bench/local

`<!-- bench local: Overview, By dataset -->` to `<!-- end -->` becomes what those sections of its `results.md` hold,
headings within them one level lower and pictures with paths of the page's own.
"""

import os
import re
import sys
from pathlib import Path

PAGES = (Path("README.md"), Path("docs/results.md"))


def sections(report: str) -> dict[str, str]:
    """Title → text of each section of a report."""
    parts = re.split(r"^## (.+)$", report, flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def spliced(page: str, name: str, found: dict[str, str], folder: Path) -> str:
    """A page with the sections that this benchmark's marks ask for. `folder`: where its pictures lie from there."""

    def fill(marks: re.Match[str]) -> str:
        wanted = [title.strip() for title in marks[1].split(",")]
        texts = [re.sub(r"^###", "####", found[title], flags=re.MULTILINE) for title in wanted]
        body = re.sub(r"\]\((?!http)([^)/]+\.png)\)", rf"]({folder.as_posix()}/\1)", "\n\n".join(texts))
        return f"<!-- bench {name}: {marks[1]} -->\n{body}\n<!-- end -->"

    return re.sub(rf"<!-- bench {name}: (.+?) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


def main() -> None:
    folder = Path(sys.argv[1])
    found = sections((folder / "results.md").read_text())
    for page in PAGES:
        page.write_text(spliced(page.read_text(), folder.name, found, Path(os.path.relpath(folder, page.parent))))


if __name__ == "__main__":
    main()
