"""Here is the model of ESPnet's slu task that learns from a teacher."""

from espnet2.slu.espnet_model import ESPnetSLUModel

from espnet_l0prune.plugin.model import L0Distilled


class L0DistillSLUModel(L0Distilled, ESPnetSLUModel):
    """This model is for ESPnet's slu task; see `L0Distilled`."""
