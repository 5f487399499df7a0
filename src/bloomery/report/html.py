"""HTML and SVG built as values: what is not already `Html` is escaped, so model text can never be markup."""

from __future__ import annotations

from html import escape

VOID = {"meta", "link", "br", "hr", "img", "line", "rect", "circle", "path", "polyline", "polygon"}


class Html(str):
    """Markup that is already safe. Made by `tag` and `join` only."""

    __slots__ = ()


Child = str | int | float | None


def text(value: Child) -> Html:
    """A piece of text made safe. Control characters, which a model may emit, are shown, not obeyed."""
    if value is None:
        return Html("")
    if isinstance(value, Html):
        return value
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in str(value))
    return Html(escape(shown, quote=True))


def join(*children: Child) -> Html:
    return Html("".join(text(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: Child | bool) -> Html:
    """`tag("p", "1 < 2", class_="a")` is `<p class="a">1 &lt; 2</p>`. None and False drop an attribute."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text("" if value is True else value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")
