"""The page of a report, and the part of a tree that it shows.

Text of a run may be hostile. It enters the page as JSON with every `<` escaped, and the document through
textContent, so it can never become markup. Even if it did, the page's content security policy allows no
script except assets/page.js, and no address to load from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from leafe_jax.runtime.console import visible

_ASSETS = Path(__file__).with_name("assets")
_MAX_CHARS = 10_000  # characters of one text on the page; the tree files have all of it
# Fields and their types. Anything that deviates is not a tree.
_NODE = {
    "id": int, "parent": int | None, "branch_step": int | None, "kind": str,
    "experience": str | None, "final_observation": str | None, "success": bool, "done": bool,
}  # fmt: skip
_TURN = {
    "step": int, "observation": str, "experiences": list, "text": str, "action": str,
    "valid": bool,
}  # fmt: skip
_REFLECTION = {
    "step": int, "text": str, "status": str, "tau": int | None, "experience": str | None,
    "child": int | None,
}  # fmt: skip


def shown_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """The part of a tree that the page shows: no token ids, and text with control characters escaped.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: the argument is not a tree.
    """
    nodes = []
    for node in tree["nodes"]:
        shown = _fields(node, _NODE)
        shown["stop"] = _fields({"stop": node.get("stop", "")}, {"stop": str})["stop"]
        shown["turns"] = [_fields(turn, _TURN) for turn in node["turns"]]
        shown["reflections"] = [_fields(record, _REFLECTION) for record in node["reflections"]]
        nodes.append(shown)
    if len({node["id"] for node in nodes}) < len(nodes):
        raise ValueError("two nodes have the same id")
    return {
        "task_id": _text(str(tree["task_id"])),
        "family": _text(str(tree["family"])),
        "nodes": nodes,
    }


def _fields(record: dict[str, Any], types: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, kind in types.items():
        value = record[name]
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise TypeError(f"{name} is {type(value).__name__}")
        found[name] = _shown(name, value)
    return found


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, list):
        if not all(isinstance(text, str) for text in value):
            raise TypeError(f"{name} holds what is no text")
        return [_text(text) for text in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    short = visible(text[:_MAX_CHARS], keep="\n\t")
    if len(text) <= _MAX_CHARS:
        return short
    return f"{short} [... {len(text) - _MAX_CHARS:,} more characters in the tree file]"


def make(sections: Sequence[str], trees: Sequence[dict[str, Any]]) -> str:
    """The page as HTML.

    Args:
      sections: HTML fragments.
      trees: from `shown_tree`.
    """
    data = json.dumps(trees, ensure_ascii=True, allow_nan=False)
    # Inside <script> only "</" and "<!--" could end or change the element. So no "<" is left at all.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    script = _asset("page.js")
    # The browser runs only the script with this hash, which covers the newline after <script>.
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    # jinja2 substitutes once, so a text of the run that looks like a placeholder is not expanded.
    template = jinja2.Environment(
        autoescape=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    ).from_string(_asset("page.html"))
    return template.render(
        digest=digest, css=Markup(_asset("page.css")), sections=Markup("\n".join(sections)),
        trees=Markup(data), script=Markup(script),
    )  # fmt: skip


def tree_controls() -> str:
    """HTML of the filters and the legend above the trees, and of the element that the trees go into."""
    return _asset("controls.html").rstrip("\n")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
