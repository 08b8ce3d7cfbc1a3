"""This is the command `espnet-l0prune schema`."""

import argparse
import json

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet


def run(args: argparse.Namespace) -> Answer:
    """Print the JSON schema of our options."""
    import_espnet()
    from espnet_l0prune.plugin.schema import schema as options

    described = options()
    return Answer(described, [json.dumps(described, indent=1)])


COMMAND = Command(
    "print a JSON schema of our options in a configuration, for editors",
    "schema > l0prune.schema.json",
    run,
)
