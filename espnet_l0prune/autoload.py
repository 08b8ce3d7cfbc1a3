"""Register with ESPnet the moment that it is imported, and not before."""

import sys

WATCHED = "espnet2.tasks.asr"
# What espnet_l0prune.pth holds; silent where the package is gone but the file is not.
PTH_LINE = (
    'import os; exec("try:\\n    '
    "os.environ.get('ESPNET_L0PRUNE_AUTOLOAD') == '0' or __import__('espnet_l0prune')"
    '\\nexcept ModuleNotFoundError:\\n    pass")\n'
)


class _RegisterAfter:
    """Finds one module through the other finders, and registers once it has run.

    A finder and a loader by their methods alone: `importlib.abc` would take longer to
    import than all of this, at the start of every Python.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != WATCHED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                self._loader, spec.loader = spec.loader, self
                return spec
        return None

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(self)
        register()


def register() -> None:
    from espnet_l0prune.plugin.register import register

    register()


def install() -> None:
    """Register now if ESPnet's tasks are there, else as soon as they are."""
    if WATCHED in sys.modules:
        register()
    elif not any(isinstance(finder, _RegisterAfter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfter())
