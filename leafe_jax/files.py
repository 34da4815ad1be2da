"""Paths that a user names, and files that a run leaves: found whole or not at all."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from leafe_jax.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local_path(name: str, text: str) -> Path:
    """The absolute path that a user means.

    A relative path starts at the current directory. "~" is the home directory, which a shell does not
    expand after "=". `file:///absolute/path` is a path, too.

    Args:
      name: of the flag or field, as it stands before the value in a message, e.g. "--workdir=".
      text: what the user wrote.

    Raises:
      UserError: it is empty, of another scheme, or of a home or current directory that is not there.
    """
    path = text
    if text.startswith("file:/"):
        url = urllib.parse.urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise UserError(f"{name}{text}: names the host {url.netloc!r}; write file:///{{path}}")
        path = urllib.parse.unquote(url.path)
    elif _SCHEME.match(text):
        raise UserError(
            f"{name}{text}: must be a directory; a bucket has to be mounted (docs/TPU.md)"
        )
    if not path or "\0" in path:
        raise UserError(f"{name}{text!r}: must be a directory")
    try:
        return Path(path).expanduser().absolute()
    except (OSError, RuntimeError) as error:  # no such home; the current directory was deleted
        raise UserError(f"{name}{text}: {error}") from error
