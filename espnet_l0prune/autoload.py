"""We register with each of ESPnet's tasks as soon as it is imported, and not before; and
with one of its programs, which tells models by their names.

Where that cannot be done, we stand aside.
"""

import os
import sys

WATCHED = (
    *(
        f"espnet2.tasks.{name}"
        for name in ("asr", "asr_transducer", "mt", "s2t", "s2t_ctc", "slu", "st")
    ),
    "espnet2.bin.s2t_inference",
    "espnet3.systems.esp2_asr.task",
)
# The line in espnet_l0prune.pth. It is silent if the package is gone but the file is not.
PTH_LINE = (
    'import os; exec("try:\\n    '
    "os.environ.get('ESPNET_L0PRUNE_AUTOLOAD') == '0' or __import__('espnet_l0prune')"
    '\\nexcept ModuleNotFoundError:\\n    pass")\n'
)


class _RegisterAfter:
    """This finder finds ESPnet's tasks through others, and registers once one has run.

    It is a finder and a loader by its methods alone, since `importlib.abc` would take
    longer to import than all of this, at the start of every Python.
    """

    def __init__(self):
        self._loaders = {}

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in WATCHED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                self._loaders[fullname], spec.loader = spec.loader, self
                return spec
        return None

    def create_module(self, spec):
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module):
        loader = self._loaders.pop(module.__name__)
        module.__spec__.loader = module.__loader__ = loader
        loader.exec_module(module)
        _register_or_stand_aside(module.__name__)


def register(module: str) -> None:
    """Enter our names into one of ESPnet's tasks.

    Args:
        module: name of the task's module

    Raises:
        Exception: any error, with an ESPnet that we do not know
    """
    from espnet_l0prune.plugin.register import register

    register(module)


def _register_or_stand_aside(*modules: str) -> None:
    """Register with tasks; if that fails, print why, and let ESPnet go on without us.

    This holds for all processes that this one starts, so that they do not print it again.
    """
    try:
        for module in modules:
            register(module)
    except Exception as e:
        from espnet_l0prune.doctor import why_aside

        os.environ["ESPNET_L0PRUNE_AUTOLOAD"] = "0"
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _RegisterAfter)]
        print(why_aside(e), file=sys.stderr)


def install() -> None:
    """Register with the tasks that are imported, and with the others once they are."""
    if not any(isinstance(finder, _RegisterAfter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfter())
    _register_or_stand_aside(*(module for module in WATCHED if module in sys.modules))
