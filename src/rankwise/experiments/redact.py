"""Passwords of database URLs, kept out of everything that is written or printed."""

import re
from urllib.parse import unquote

HIDDEN = "***"

# Of a database's URL everything between the user's colon and the last @ is the password: people paste passwords as
# they are, with slashes and @. Other URLs are read strictly. `password=` is the query of a URL, or libpq's own form.
_PATTERNS = (
    re.compile(r"(?P<kept>postgres(?:ql)?://[^:/@\s]*:)(?P<secret>[^\s'\"]*)(?=@)"),
    re.compile(r"(?P<kept>[a-zA-Z][a-zA-Z0-9+.-]*://[^:/@\s]*:)(?P<secret>[^\s/'\"]*)(?=@)"),
    re.compile(r"(?P<kept>(?:ssl)?password\s*=\s*)(?P<secret>'[^']*'|[^\s&'\"]+)", re.IGNORECASE),
)


def without_passwords(text: str) -> str:
    """`text` with every password of a URL (`scheme://user:password@host`, `?password=…`) replaced by `***`."""
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<kept>{HIDDEN}", text)
    return text


def passwords(text: str) -> tuple[str, ...]:
    """The passwords in a URL, as they stand and decoded, longest first, for finding them in others' messages."""
    found = {match["secret"] for pattern in _PATTERNS for match in pattern.finditer(text)}
    found |= {unquote(secret) for secret in found}
    return tuple(sorted(filter(None, found), key=len, reverse=True))
