"""torch and transformers, imported when a test first uses them: five seconds that collection is spared."""

import importlib


class Module:
    """Stands for a module, and imports it at the first look at one of its attributes."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        if attribute.startswith("_"):
            raise AttributeError(attribute)  # pytest asks every object of a test module for some
        return getattr(importlib.import_module(self._name), attribute)


torch, transformers = Module("torch"), Module("transformers")
