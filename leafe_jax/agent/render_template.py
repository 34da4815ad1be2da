"""Renders a chat template in a process of its own: `python -I -S render_template.py`, JSON in and out.

A template comes with a model directory, so it may be hostile: it may loop forever or build gigabytes.
This process therefore has limits on processor time and memory. Templates get the environment that
transformers gives them, with two differences: the date is fixed and `random` has a fixed seed, so a
conversation gives the same text on any day.

`leafe_jax.agent.templates` starts it. It imports only jinja2, to start quickly.
"""

import datetime
import json
import random
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # jinja2 is found only after main() has set sys.path
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, BYTES = 0.8, 2**30  # limits on processor time and memory
_DATE = datetime.datetime(2024, 7, 26)


def make_environment() -> "ImmutableSandboxedEnvironment":
    """The sandbox that transformers renders templates in, with its tags, filters and functions."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the assistant says; it renders as its body."""

        tags = {"generation"}

        def parse(self, parser: "Parser") -> "Node":
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
            sort_keys=sort_keys,
        )  # fmt: skip

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _DATE.strftime}
    return environment


def render(job: dict) -> dict:
    """{"texts": one per conversation}, or {"error": what is wrong with the template}."""
    texts = []
    try:
        template = make_environment().from_string(job["template"])
        for messages, prompt in job["conversations"]:
            random.seed(0)
            texts.append(
                template.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
                    **job["variables"],
                )
            )  # fmt: skip
    except MemoryError:
        return {"error": "it needs more than 1 GiB of memory"}
    except Exception as error:  # a template can raise anything
        return {"error": " ".join(str(error).split())[:300] or type(error).__name__}
    return {"texts": texts}


def main() -> None:
    job = json.load(sys.stdin)
    sys.path[:] = job["path"]
    import jinja2.sandbox  # noqa: F401  (before the limits apply)

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = BYTES if hard == resource.RLIM_INFINITY else min(BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    # SIGPROF ends the process even while it is in one long operation of C code.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    found = json.dumps(render(job))
    if len(found) > 2**22:
        found = json.dumps({"error": "a turn of it is longer than a megabyte"})
    print(found)


if __name__ == "__main__":
    main()
