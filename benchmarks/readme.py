"""Puts a benchmark's tables into README, between the marks that name it.

    python -m benchmarks.readme docs/bench/local

`<!-- bench local: Overview, By dataset -->` to `<!-- end -->` becomes what those sections of its `results.md` hold,
headings within them one level lower and pictures with paths of README's own.
"""

import re
import sys
from pathlib import Path

README = Path("README.md")


def sections(report: str) -> dict[str, str]:
    """Title → text of each section of a report."""
    parts = re.split(r"^## (.+)$", report, flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def spliced(readme: str, name: str, found: dict[str, str], folder: Path) -> str:
    """README with the sections that the marks of this benchmark ask for."""

    def fill(marks: re.Match[str]) -> str:
        wanted = [title.strip() for title in marks[1].split(",")]
        texts = [re.sub(r"^###", "####", found[title], flags=re.MULTILINE) for title in wanted]
        body = re.sub(r"\]\((?!http)([^)/]+\.png)\)", rf"]({folder.as_posix()}/\1)", "\n\n".join(texts))
        return f"<!-- bench {name}: {marks[1]} -->\n{body}\n<!-- end -->"

    return re.sub(rf"<!-- bench {name}: (.+?) -->\n.*?<!-- end -->", fill, readme, flags=re.DOTALL)


def main() -> None:
    folder = Path(sys.argv[1])
    found = sections((folder / "results.md").read_text())
    README.write_text(spliced(README.read_text(), folder.name, found, folder))


if __name__ == "__main__":
    main()
