"""ESPnet's models name what reads an encoder's output each in their own way."""

from torch import nn

from espnet_l0prune.networks.espnet_modules import LabelSmoothingLoss

CTCS = "ctc", "st_ctc"  # of the source language, and of the translation
JOINTS = "joint_network", "st_joint_network"
# In asr, s2t and slu, in st, in mt, and of Mask-CTC
TOKEN_LOSSES = "criterion_att", "criterion_st", "criterion_mt", "criterion_mlm"
AFTER_ENCODER = "hier_encoder", "postencoder", "postdecoder", "deliberationencoder"


def name_absent_(model: nn.Module) -> None:
    """Store None on a model for each part that others of ESPnet have, and it has not."""
    for name in ("frontend", "specaug", "normalize", "preencoder", "ctc", "decoder"):
        if not hasattr(model, name):
            setattr(model, name, None)


def ctcs_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's CTC heads by name; see `logits_of`.

    In the task asr_transducer it is a layer alone, for an auxiliary loss.
    """
    layer = getattr(model, "ctc_lin", None)
    return _present(model, CTCS) if layer is None else {"ctc": layer}


def logits_of(ctc: nn.Module) -> nn.Module:
    """Return the layer of a CTC head that computes its logits."""
    return getattr(ctc, "ctc_lo", ctc)


def output_size_of(encoder: nn.Module) -> int:
    """Return the number of features of an encoder's output."""
    size = encoder.output_size  # in the task asr_transducer it is no method
    return size() if callable(size) else size


def joint_network_of(model: nn.Module) -> nn.Module | None:
    """Return the joint network of a transducer; None for another model."""
    return next(iter(_present(model, JOINTS).values()), None)


def is_transducer(model: nn.Module) -> bool:
    """Return whether the decoder of an ESPnet model feeds a joint network."""
    return joint_network_of(model) is not None


def is_multi_decoder(model: nn.Module) -> bool:
    """Return whether a model's decoder reads the states of another decoder, as in st."""
    return getattr(model, "md_encoder", None) is not None


def token_loss_of(model: nn.Module) -> LabelSmoothingLoss:
    """Return the loss of the tokens that a model's attention decoder predicts."""
    (loss,) = _present(model, TOKEN_LOSSES).values()
    return loss


def after_encoder(model: nn.Module) -> list[nn.Module]:
    """Return what a model's encoder feeds before its decoder reads, in this order."""
    return [*_present(model, AFTER_ENCODER).values()]


def reads_early(model: nn.Module, ctc: str) -> bool:
    """Return whether a CTC head, by its name, reads what the encoder writes, and not what
    follows the encoder, as in some models of st."""
    early = getattr(getattr(model, "postencoder", None), "return_int_enc", False)
    hier = getattr(model, "hier_encoder", None) is not None
    return early or (hier and ctc == "ctc")


def _present(model: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    parts = ((name, getattr(model, name, None)) for name in names)
    return {name: part for name, part in parts if part is not None}
