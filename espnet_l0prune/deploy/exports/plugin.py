"""The plugin form keeps a model as it is, for ESPnet with this package."""

import argparse
from pathlib import Path

from torch import nn

from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.deploy.card import PLUGIN_PACKAGES
from espnet_l0prune.deploy.exports.form import ExportForm, Packed, same_as
from espnet_l0prune.deploy.verify import TOLERANCE
from espnet_l0prune.plugin.network import L0Network
from espnet_l0prune.plugin.weight_names import portable


class PluginForm(ExportForm):
    """The `PluginForm` keeps a model as small as it was cut."""

    def pack(
        self, model: nn.Module, args: argparse.Namespace, folder: Path, int8: bool
    ) -> Packed:
        """Pack the model; see `ExportForm.pack`."""
        for name in NETWORKS:
            network = getattr(model, name)
            if isinstance(network, L0Network):
                conf = {**getattr(args, f"{name}_conf"), **network.portable_conf()}
                setattr(args, f"{name}_conf", conf)
        return Packed(portable(model), args, same_as(model, TOLERANCE), PLUGIN_PACKAGES)
