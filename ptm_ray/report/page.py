"""A page for a browser: Markdown as one file of HTML, with its pictures inside."""

import base64
import html
from collections.abc import Collection, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #8884; padding: .3rem .8rem .3rem 0; text-align: left; }
pre { background: #8881; padding: .8rem; overflow-x: auto; }
code { font-size: .9em; }
img { max-width: 100%; background: white; }
"""
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def page(title: str, text: str, folder: Path, pictures: Collection[str] = ()) -> str:
    """The HTML of a Markdown text; `pictures` are PNG files that it may show, by their paths from `folder`.

    HTML within the text and any other picture are shown as they are written, so that no name of a class or dataset
    does anything here, or has a file read.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.add_render_rule("image", _picture)
    body = reader.render(text, {"folder": folder, "pictures": pictures})
    return TEMPLATE.format(title=html.escape(title), style=STYLE, body=body)


def _picture(
    renderer: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: MutableMapping[str, Any]
) -> str:
    token = tokens[at]
    name = str(token.attrs["src"])
    if name not in env["pictures"]:
        return html.escape(f"![{token.content}]({name})")
    held = (env["folder"] / name).read_bytes()
    token.attrs["src"] = f"data:image/png;base64,{base64.b64encode(held).decode()}"
    return renderer.image(tokens, at, options, env)
