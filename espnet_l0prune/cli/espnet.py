"""Commands import ESPnet in silence."""

import contextlib
import io
import warnings

from espnet_l0prune.autoload import register
from espnet_l0prune.cli.progress import busy


def import_espnet() -> None:
    """Import ESPnet without what it and its dependencies print.

    torch's warnings about ESPnet are switched off too.

    Raises:
        ImportError: ESPnet cannot be imported, or we cannot register with it
    """
    warnings.simplefilter("ignore", FutureWarning)
    printed = io.StringIO()
    try:
        with (
            busy("importing ESPnet"),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            import espnet2.tasks.asr

            register(espnet2.tasks.asr.__name__)  # raises the reason for standing aside
    except (ImportError, OSError) as e:
        raise ImportError(
            f"this ESPnet cannot be used: {e}. `espnet-l0prune doctor` says what is wrong"
        ) from e
