"""A trace holds what a model's parts take and return in a forward."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_l0prune.networks.block import Block
from espnet_l0prune.networks.blocks import block_of
from espnet_l0prune.networks.espnet_ssl import masks_of
from espnet_l0prune.networks.s3prl import upstream_of
from espnet_l0prune.networks.sites import layers_of
from espnet_l0prune.networks.speakers import hears_speakers, one_after_another
from espnet_l0prune.networks.streaming import in_time
from espnet_l0prune.networks.whisper import augmenting
from espnet_l0prune.plugin.heads import ctcs_of, joint_network_of, logits_of


@dataclass
class Trace:
    """A `Trace` holds what encoder, decoder and heads take and return in a forward.

    Attributes:
        augmentation: the SpecAugment that took part, if one did, and repeats what it drew
        masks: the same of what hides states within a front end, by the module's name
        ctc_args, ctc_out: by the head's name; V is the size of a head's vocabulary
    """

    augmentation: "Again | None" = None
    masks: dict[str, "Again"] = field(default_factory=dict)
    # of a self-supervised front end, (batch, time, size) each, time, and (batch,)
    frontend_blocks: dict[int, Tensor] = field(default_factory=dict)
    frontend_frames: int = 0
    frontend_lengths: Tensor | None = None
    encoder_args: tuple = ()
    block_args: dict[int, tuple] = field(default_factory=dict)
    block_kwargs: dict[int, dict] = field(default_factory=dict)
    blocks: dict[int, Tensor] = field(default_factory=dict)  # (batch, time, size) each
    encoder_out: Tensor | None = None  # (batch, time, size)
    encoder_lengths: Tensor | None = None  # (batch,)
    # what intermediate CTC reads, by the layer's number, and logits, (batch, time, V)
    between: dict[int, Tensor] = field(default_factory=dict)
    between_out: dict[int, Tensor] = field(default_factory=dict)
    memory: Tensor | None = None  # the same after what follows the encoder, if anything
    memory_lengths: Tensor | None = None
    # of several speakers' outputs, (batch, speakers), as the loss has ordered them
    speakers: Tensor | None = None
    ctc_args: dict[str, tuple] = field(default_factory=dict)
    ctc_out: dict[str, Tensor] = field(default_factory=dict)  # logits, (batch, time, V)
    decoder_args: tuple = ()
    decoder_out: Tensor | None = None  # logits, (batch, tokens, V)
    joint_out: Tensor | None = None  # logits, (batch, time, tokens + 1, V)

    def is_early(self, name: str) -> bool:
        """Return whether a CTC head reads what the encoder writes, and no part after."""
        return name in self.ctc_args and self.ctc_args[name][0] is self.encoder_out

    def ctc_logits(self, name: str, ctc: nn.Module) -> tuple[Tensor, Tensor]:
        """Return a head's logits for all utterances, and their lengths, (batch,).

        ESPnet may call the head for some of them, or none: s2t has some without a text.

        Args:
            name: the head's name
            ctc: the head
        """
        early = self.is_early(name)
        lengths = self.encoder_lengths if early else self.memory_lengths
        assert lengths is not None  # the encoder has set it
        if name in self.ctc_out:
            return self.ctc_out[name], lengths
        return logits_of(ctc)(self.encoder_out if early else self.memory), lengths

    @property
    def hidden_from_chunks(self) -> Tensor | None:
        """Return which frames were hidden from others, (time, time), in a training of the
        task asr_transducer that draws chunks."""
        return next(iter(self.block_kwargs.values()), {}).get("chunk_mask")


class Again(nn.Module):
    """An `Again` augments as another module did, with the same random numbers.

    Args:
        module: the other module, ESPnet's SpecAug or Masking, which is about to be called
        device: where it is called
    """

    def __init__(self, module: nn.Module, device: torch.device):
        super().__init__()
        self.modules_before = [module]  # in a list, so that it is no child
        self.devices = [device] if device.type == "cuda" else []
        self.states = [
            torch.get_rng_state(),
            *map(torch.cuda.get_rng_state, self.devices),
        ]

    def by(self, module: nn.Module) -> "Again":
        """Return the same with another module's weights: SpecAug has none."""
        other = copy.copy(self)
        other.modules_before = [module]
        return other

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        """Return what the module makes of features (batch, time, size), augmented.

        Args:
            features: the features
            lengths: their lengths (batch,), or where there is padding, (batch, time)
        """
        (module,) = self.modules_before
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return module(features, lengths)


@contextmanager
def record(model: AbsESPnetModel, with_frontend: bool = False) -> Iterator[Trace]:
    """Record one forward of a model's encoder, its blocks and its heads, by hooks.

    Args:
        model: ESPnet's model
        with_frontend: whether also to keep the hidden states of a self-supervised front
            end, which are large
    """
    trace = Trace()

    def on_augmentation(module, args):
        trace.augmentation = Again(module, args[0].device)

    def on_mask(name, module, args):
        trace.masks[name] = Again(module, args[0].device)

    def on_encoder(_, args, output):
        trace.encoder_args = args
        trace.encoder_out, trace.encoder_lengths = Block.stream(output), output[1]
        if output[1].dim() > 1:  # the speakers of an utterance have the same frames
            trace.encoder_lengths = output[1][:, 0]
        if isinstance(output[0], tuple):
            trace.between = dict(output[0][1])

    encode, patched = model.encode, "encode" in vars(model)

    @wraps(encode)
    def encode_and_note(*args, **kwargs):
        output = encode(*args, **kwargs)
        memory = one_after_another(Block.stream(output[0]), output[1])
        trace.memory, trace.memory_lengths = memory
        return output

    def on_block(i, block, args, kwargs, output):
        trace.block_args[i], trace.block_kwargs[i] = args, kwargs
        hidden = in_time(model.encoder, block_of(block).stream(output))
        if i in trace.blocks and hears_speakers(model):  # it ran for another one before
            hidden = torch.cat([trace.blocks[i], hidden])
        trace.blocks[i] = hidden

    def on_decoder(_, args, output):
        # a transducer also decodes later, to report error rates, and st translates text
        # by its decoder first
        if not trace.decoder_args or args[0] is trace.memory:
            trace.decoder_args, trace.decoder_out = args, Block.stream(output)

    def on_joint(_, args, output):
        if trace.joint_out is None:
            trace.joint_out = output

    def on_speakers(_, args, output):
        trace.speakers = output[1]

    def on_ctc_loss(name, _, args):
        if trace.speakers is not None:  # from here on, they are in this order
            trace.memory, trace.memory_lengths = args[:2]
        # it may also be called for a part of the batch, and for intermediate CTC
        if args[0] is trace.encoder_out or args[0] is trace.memory:
            trace.ctc_args[name] = args

    def on_ctc(name, _, args, output):
        if name in trace.ctc_args:  # conditioning calls it before
            trace.ctc_out.setdefault(name, output)

    def on_upstream(_, args, output):  # whose blocks may see one more frame
        trace.frontend_frames = output[0].size(1)

    def on_frontend(_, args, output):
        trace.frontend_lengths = output[1]
        if upstream is not None:
            trace.frontend_lengths = output[1].clamp(max=trace.frontend_frames)

    def on_frontend_block(i, _, args, output):
        hidden = Block.stream(output)
        trace.frontend_blocks[i] = hidden if upstream is None else hidden.transpose(0, 1)

    hooks = [model.encoder.register_forward_hook(on_encoder)]
    upstream = upstream_of(model.frontend)  # of s3prl's, whose blocks have time first
    if with_frontend and layers_of(model.frontend):
        if upstream is not None:
            hooks.append(upstream.encoder.register_forward_hook(on_upstream))
        hooks.append(model.frontend.register_forward_hook(on_frontend))
        for i, block in enumerate(layers_of(model.frontend)):
            hooks.append(block.register_forward_hook(partial(on_frontend_block, i)))
    for name, module in masks_of(model.frontend).items():
        hooks.append(module.register_forward_pre_hook(partial(on_mask, name)))
    specaug = augmenting(model)[0].specaug
    if isinstance(specaug, nn.Module):
        hooks.append(specaug.register_forward_pre_hook(on_augmentation))
    for i, block in enumerate(layers_of(model.encoder)):
        on_this = partial(on_block, i)
        hooks.append(block.register_forward_hook(on_this, with_kwargs=True))
    if model.decoder is not None:
        hooks.append(model.decoder.register_forward_hook(on_decoder))
    if hears_speakers(model):
        hooks.append(model.pit_ctc.register_forward_hook(on_speakers))
    for name, ctc in ctcs_of(model).items():
        hooks.append(ctc.register_forward_pre_hook(partial(on_ctc_loss, name)))
        hooks.append(logits_of(ctc).register_forward_hook(partial(on_ctc, name)))
    joint_network = joint_network_of(model)
    if joint_network is not None:
        hooks.append(joint_network.register_forward_hook(on_joint))
    model.encode = encode_and_note
    try:
        yield trace
    finally:
        del model.encode
        if patched:
            model.encode = encode
        for hook in hooks:
            hook.remove()
