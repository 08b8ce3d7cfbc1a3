"""What was in this package once, and where it is now."""

import argparse
from typing import Any

NAME = "low_rank_conformer"


def refuse_moved(task: type[Any], args: argparse.Namespace) -> None:
    """Refuse a configuration with the encoder that was a study, unless the study has
    registered it in this process.

    Args:
        task: ESPnet's, which the configuration is of
        args: the configuration

    Raises:
        ValueError: that encoder, of which nothing is known here
    """
    known = any(NAME in choices.classes for choices in task.class_choices_list)
    if getattr(args, "encoder", None) == NAME and not known:
        raise ValueError(
            f"the model has encoder: {NAME}, of layers factored by SVD. It was a study, "
            "and has left this package; expected another encoder. The programs in "
            "studies/ of this project's repository have it: use this model with them."
        )
