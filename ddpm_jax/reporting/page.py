"""The page around the parts: one HTML file that loads nothing and runs anywhere."""

import html
import importlib.resources
import string
from collections.abc import Sequence

# No request leaves the page: only what stands in it is shown and run.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header><h1>$title</h1><p class="note">$note</p>
<nav aria-label="Parts of the page"><ul>$menu</ul></nav></header>
<main>
$body</main>
<script>
$script</script>
</body>
</html>
""")


def page(title: str, note: str, parts: Sequence[tuple[str, str, str]]) -> str:
    """The page as HTML.

    Args:
        title: its heading, text.
        note: a line below it, text.
        parts: (anchor, name in the menu or "" for none, HTML).
    """
    menu = "".join(
        f'<li><a href="#{html.escape(anchor)}">{html.escape(name)}</a></li>'
        for anchor, name, _ in parts if name
    )
    return _PAGE.substitute(
        policy=html.escape(_POLICY, quote=False), title=html.escape(title), note=html.escape(note),
        menu=menu, body="".join(body for _, _, body in parts),
        style=_file("page.css"), script=_file("page.js"),
    )


def _file(name):
    return importlib.resources.files(__package__).joinpath(name).read_text()
