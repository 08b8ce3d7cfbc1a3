"""These are the blocks of HuBERT, wav2vec 2.0 and WavLM, as s3prl has them."""

from torch import nn

from espnet_l0prune.core.hooks import GateHook
from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import S3PRL_FEED_FORWARD, SELF_ATTENTION
from espnet_l0prune.networks.s3prl_modules import S3prlLayer, WavLMLayer


class S3prlBlock(Block):
    """A `S3prlBlock` is one of HuBERT's or of wav2vec 2.0's.

    Its feed-forward network has no module of its own: the second layer stands for it.
    """

    module_type = S3prlLayer
    layout = {
        "self_attn": Place("self_attn_layer_norm", "attention", SELF_ATTENTION),
        "fc2": Place("final_layer_norm", "FFN", S3PRL_FEED_FORWARD),
    }

    @property
    def branches(self) -> dict[str, Place]:
        gated = not isinstance(self.module.fc1, nn.Linear)
        return {k: v for k, v in super().branches.items() if not (gated and k == "fc2")}

    def norm_is_shared(self, name: str) -> bool:
        return not self.module.layer_norm_first

    @classmethod
    def identity(cls, args: tuple, kwargs: dict) -> tuple:
        return args[0], (None, args[0])

    def skip(self) -> nn.Module:
        """Return what returns its input, from which s3prl still takes what it reads."""
        skip = super().skip()
        for key, hook in self.module._forward_hooks.items():
            if not isinstance(hook, GateHook):
                skip._forward_hooks[key] = hook
        return skip


class WavLMBlock(S3prlBlock):
    """A `WavLMBlock` also returns relative positions, which the first one computes."""

    module_type = WavLMLayer
    hands_on = "relative positions"
