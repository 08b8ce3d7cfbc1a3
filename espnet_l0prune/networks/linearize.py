"""Linear attention can take the place of ESPnet's plain attention."""

from torch import nn

from espnet_l0prune.networks.blocks import block_of
from espnet_l0prune.networks.branches import SELF_ATTENTION
from espnet_l0prune.networks.espnet_modules import MultiHeadedAttention
from espnet_l0prune.networks.linear_attention import LinearAttention
from espnet_l0prune.networks.sites import layers_of


def linearize_(network: nn.Module, features: int, where: str) -> None:
    """Give an encoder's blocks linear attention, in place.

    Args:
        network: ESPnet's encoder
        features: number of random features of each attention
        where: the part of the configuration that has the option, for messages

    Raises:
        ValueError: a decoder, a streaming encoder, or attention of another kind
    """
    if not hasattr(network, "encoders"):
        raise ValueError(
            f"{where}: random_features is {features}; expected it of an encoder: what a "
            "decoder attends to differs from token to token"
        )
    for block in layers_of(network):
        if what := block_of(block).hands_on:
            raise ValueError(
                f"{where}: random_features is {features}, but blocks hand on {what}, "
                "which only a part of the frames may attend to; expected an encoder that "
                "is not a streaming one"
            )
        for name, place in block_of(block).branches.items():
            if place.sites is not SELF_ATTENTION:
                continue
            old = getattr(block, name)
            if type(old) is not MultiHeadedAttention:
                raise ValueError(
                    f"{where}: random_features is {features}, but {name} is a "
                    f"{type(old).__name__}; expected plain attention: "
                    "selfattention_layer_type: selfattn and pos_enc_layer_type: abs_pos "
                    "(attention_layer_type in the Branchformers)"
                )
            normed = not isinstance(old.q_norm, nn.Identity)
            size = old.linear_out.out_features
            setattr(block, name, LinearAttention(old.h, size, features, normed))
