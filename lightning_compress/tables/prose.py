"""The little Markdown that a table's texts may use: `code`, *stress*, **strong**, [links](url)."""

import re
from collections.abc import Iterator

_MARKUP = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<strong>[^*]+)\*\*|\*(?P<em>[^*]+)\*|\[(?P<a>[^\]]+)\]\((?P<url>[^)\s]+)\)"
)


def pieces(text: str) -> Iterator[tuple[str, str, str]]:
    """Kind (`text`, `code`, `strong`, `em` or `a`), text and address of each piece, in order.

    >>> list(pieces("a *b* [c](https://d.org)"))
    [('text', 'a ', ''), ('em', 'b', ''), ('text', ' ', ''), ('a', 'c', 'https://d.org')]
    """
    at = 0
    for found in _MARKUP.finditer(text):
        if found.start() > at:
            yield "text", text[at : found.start()], ""
        kind = next(name for name in ("code", "strong", "em", "a") if found[name] is not None)
        yield kind, found[kind], found["url"] or ""
        at = found.end()
    if at < len(text):
        yield "text", text[at:], ""
