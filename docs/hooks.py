"""Docstrings use Sphinx roles; the site shows what they name as code."""

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([^<]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Replace each role by the name it refers to."""
    return _ROLE.sub(r"<code>\1</code>", html)
