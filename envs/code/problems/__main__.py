"""Writes the problem set; see the package's docstring."""

from envs import sandbox
from envs.code import data as code_data
from envs.code import problems

with sandbox.Sandbox() as pool:
    text = "".join(problems.build(pool))
code_data.OWN_SET.parent.mkdir(parents=True, exist_ok=True)
code_data.OWN_SET.write_text(text)
print(f"{code_data.OWN_SET}: {text.count(chr(10))} problems, {len(text)} bytes")
