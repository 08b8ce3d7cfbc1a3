"""A model can be packed in several forms; each has a file, and is named in `FORMS`."""

import importlib
from typing import NamedTuple


class Entry(NamedTuple):
    """An `Entry` names a form, which is only imported when it is asked for.

    The command line can list all forms without importing them.

    Attributes:
        text: what the form is, for `--help`
        where: its class, an `ExportForm`, as `module:name`
    """

    text: str
    where: str


FORMS = {
    "plugin": Entry("small, needs this package", f"{__name__}.plugin:PluginForm"),
    "stock": Entry(
        "plain ESPnet loads it, filled up with zeros where its configuration cannot say "
        "what was cut",
        f"{__name__}.stock:StockForm",
    ),
    "onnx": Entry(
        "onnxruntime runs encoder and decoder, with ESPnet and this package or without "
        "them",
        f"{__name__}.onnx:OnnxForm",
    ),
}


def find_form(name: str):
    """Return the form of a given name in `FORMS`, an `ExportForm`."""
    module, _, form = FORMS[name].where.partition(":")
    return getattr(importlib.import_module(module), form)()
