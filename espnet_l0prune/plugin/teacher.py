"""The teacher is the unpruned model, which runs on what the student's encoder reads."""

import inspect
import logging
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
from espnet_l0prune.networks.s3prl import upstream_of
from espnet_l0prune.networks.sites import layers_of
from espnet_l0prune.networks.streaming import in_time
from espnet_l0prune.networks.whisper import augmenting, reads_waveform
from espnet_l0prune.plugin.experiment import load_model
from espnet_l0prune.plugin.heads import (
    after_encoder,
    ctcs_of,
    is_transducer,
    joint_network_of,
)
from espnet_l0prune.plugin.inputs import reads_tokens

BEFORE_ENCODER = "frontend", "normalize", "preencoder"
# Arguments of `encode` that have other names in a batch, in slu
ALIASES = {"transcript_pad": "transcript", "transcript_pad_lens": "transcript_lengths"}


@dataclass
class Trace:
    """A `Trace` holds what encoder, decoder and heads take and return in a forward.

    Attributes:
        augmentation: the SpecAugment that took part, if one did, and repeats what it drew
        ctc_args, ctc_out: by the head's name; V is the size of a head's vocabulary
    """

    augmentation: "Again | None" = None
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
        return ctc.ctc_lo(self.encoder_out if early else self.memory), lengths


class Again(nn.Module):
    """An `Again` augments as another module did, with the same random numbers.

    Args:
        module: the other module, ESPnet's SpecAug, which is about to be called
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

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (batch, time, size) and their lengths (batch,), augmented."""
        (module,) = self.modules_before
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return module(features, lengths)


def _copied(value: Any) -> Any:
    """Return a copy of a tensor, as ESPnet writes into some that it is given."""
    return value.clone() if isinstance(value, Tensor) else value


def _type(module: nn.Module | None) -> str:
    return type(module).__name__


@contextmanager
def record(model: AbsESPnetModel) -> Iterator[Trace]:
    """Record one forward of a model's encoder, its blocks and its heads, by hooks."""
    trace = Trace()

    def on_augmentation(module, args):
        trace.augmentation = Again(module, args[0].device)

    def on_encoder(_, args, output):
        trace.encoder_args = args
        trace.encoder_out, trace.encoder_lengths = Block.stream(output), output[1]
        if isinstance(output[0], tuple):
            trace.between = dict(output[0][1])

    encode, patched = model.encode, "encode" in vars(model)

    @wraps(encode)
    def encode_and_note(*args, **kwargs):
        output = encode(*args, **kwargs)
        trace.memory, trace.memory_lengths = Block.stream(output[0]), output[1]
        return output

    def on_block(i, block, args, kwargs, output):
        trace.block_args[i], trace.block_kwargs[i] = args, kwargs
        trace.blocks[i] = in_time(model.encoder, block_of(block).stream(output))

    def on_decoder(_, args, output):
        # a transducer also decodes later, to report error rates, and st translates text
        # by its decoder first
        if not trace.decoder_args or args[0] is trace.memory:
            trace.decoder_args, trace.decoder_out = args, Block.stream(output)

    def on_joint(_, args, output):
        if trace.joint_out is None:
            trace.joint_out = output

    def on_ctc_loss(name, _, args):
        # it may also be called for a part of the batch, and for intermediate CTC
        if args[0] is trace.encoder_out or args[0] is trace.memory:
            trace.ctc_args[name] = args

    def on_ctc(name, _, args, output):
        if name in trace.ctc_args:  # conditioning calls it before
            trace.ctc_out.setdefault(name, output)

    hooks = [model.encoder.register_forward_hook(on_encoder)]
    specaug = augmenting(model)[0].specaug
    if isinstance(specaug, nn.Module):
        hooks.append(specaug.register_forward_pre_hook(on_augmentation))
    for i, block in enumerate(layers_of(model.encoder)):
        on_this = partial(on_block, i)
        hooks.append(block.register_forward_hook(on_this, with_kwargs=True))
    if model.decoder is not None:
        hooks.append(model.decoder.register_forward_hook(on_decoder))
    for name, ctc in ctcs_of(model).items():
        hooks.append(ctc.register_forward_pre_hook(partial(on_ctc_loss, name)))
        hooks.append(ctc.ctc_lo.register_forward_hook(partial(on_ctc, name)))
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


class Teacher:
    """A `Teacher` is a trained model that only gives targets.

    It is not an nn.Module, so no checkpoint, optimizer or `.train()` includes it.

    Args:
        config_file, model_file: configuration and checkpoint of the teacher's experiment
        student: the model that will learn from it, to whose device the teacher goes

    Raises:
        ValueError: files that are missing or damaged, or a teacher that does not fit
    """

    def __init__(self, config_file: str, model_file: str, student: AbsESPnetModel):
        parameter = next(student.parameters())
        with torch.random.fork_rng():
            self.model, _ = load_model(config_file, model_file)
        self._check(student, config_file)
        layers = (
            getattr(m.encoder, "interctc_layer_idx", []) for m in (self.model, student)
        )
        self.has_same_between = next(layers) == next(layers)
        self.model.to(device=parameter.device, dtype=parameter.dtype)
        self.model.eval().requires_grad_(False)
        logging.info(f"Teacher: {model_file}")

    def _check(self, student: AbsESPnetModel, config_file: str) -> None:
        teacher = self.model

        def differ(what: str, theirs, ours) -> ValueError:
            return ValueError(
                f"the teacher {config_file} has {what} {theirs}, the student {ours}; "
                "expected the same. Choose the teacher that the student was made from, "
                "or mend the student's configuration."
            )

        for name in ("token_list", "src_token_list"):  # the second in st and mt
            theirs, ours = (getattr(model, name, None) for model in (teacher, student))
            if theirs is None or ours is None:
                continue
            if len(theirs) != len(ours):
                raise differ(f"a {name} of length", len(theirs), len(ours))
            for pair in zip(theirs, ours, strict=True):
                if pair[0] != pair[1]:
                    what = f"another {name}: first different token"
                    raise differ(what, *map(repr, pair))
        checks = [
            ("features of size", lambda m: m.encoder.input_size),
            (
                "a front end of type",
                lambda m: _type(getattr(m.encoder, "embed", None)),
            ),
            ("a decoder:", lambda m: m.decoder is not None),
            ("a transducer:", is_transducer),
            ("CTC heads:", lambda m: [*ctcs_of(m)]),
            ("what follows the encoder:", lambda m: [*map(_type, after_encoder(m))]),
            (
                "interctc_use_conditioning:",
                lambda m: getattr(m.encoder, "interctc_use_conditioning", False),
            ),
        ]
        if student.layer_weight != 0:
            checks.append(
                ("an encoder output of size", lambda m: m.encoder.output_size())
            )
            if student.layer_map == "same":
                checks.append(("encoder blocks:", lambda m: len(layers_of(m.encoder))))
        for what, read in checks:
            if read(teacher) != read(student):
                raise differ(what, read(teacher), read(student))

    @torch.no_grad()
    def follow(self, student: Trace, batch: dict[str, Any], apart: bool = False) -> Trace:
        """Run the teacher on the student's encoder input and decoder input.

        Args:
            student: the trace of the student's forward
            batch: what the model took, by name
            apart: whether the teacher reads the batch in a pass of its own, with the same
                SpecAugment, and not what the student's encoder has read

        Returns:
            the trace of the teacher's forward
        """
        inputs = {}
        for name in inspect.signature(self.model.encode).parameters:
            value = batch.get(ALIASES.get(name, name))
            if value is not None:
                inputs[name] = _copied(value)
        # in these, features are looked up, or computed by what is pruned
        apart = apart or reads_tokens(self.model) or reads_waveform(self.model.encoder)
        apart = apart or upstream_of(self.model.frontend) is not None
        with record(self.model) as trace:
            if apart:
                with self._augmented_as(student):
                    self.model.encode(**inputs)
            else:
                features = zip(
                    ("speech", "speech_lengths"), student.encoder_args, strict=False
                )
                with self._without_front_end():
                    self.model.encode(**inputs | dict(features))
            joint_network, memory = joint_network_of(self.model), trace.memory
            for name, ctc in ctcs_of(self.model).items():
                early = student.is_early(name)
                trace.ctc_out[name] = ctc.ctc_lo(trace.encoder_out if early else memory)
                if self.has_same_between:
                    between = trace.between.items()
                    trace.between_out = {i: ctc.ctc_lo(hidden) for i, hidden in between}
            if joint_network is not None and memory is not None and student.decoder_args:
                self.model.decoder.set_device(memory.device)
                decoder_out = self.model.decoder(*map(_copied, student.decoder_args))
                joint_network(memory.unsqueeze(2), decoder_out.unsqueeze(1))
            elif student.decoder_args and student.decoder_args[0] is student.memory:
                self.model.decoder(memory, *map(_copied, student.decoder_args[1:]))
        return trace

    @contextmanager
    def _without_front_end(self) -> Iterator[None]:
        """Let the teacher read what the student's encoder reads."""
        before = {name: getattr(self.model, name) for name in BEFORE_ENCODER}
        for name in before:
            setattr(self.model, name, None)
        try:
            yield
        finally:
            for name, part in before.items():
                setattr(self.model, name, part)

    @contextmanager
    def _augmented_as(self, student: Trace) -> Iterator[None]:
        """Augment what the teacher hears by itself as the student did, frame by frame."""
        owner, switch = augmenting(self.model)
        own, owner.specaug = owner.specaug, student.augmentation
        switch.training = True  # of this module alone: the others stay as they are
        try:
            yield
        finally:
            owner.specaug, switch.training = own, False
