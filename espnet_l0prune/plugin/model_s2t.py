"""Here is the model of ESPnet's s2t task, which OWSM uses, that learns from a teacher."""

from espnet2.s2t.espnet_model import ESPnetS2TModel

from espnet_l0prune.plugin.model import L0Distilled


class L0DistillS2TModel(L0Distilled, ESPnetS2TModel):
    """This model is for ESPnet's s2t task; see `L0Distilled`."""
