"""The teacher is the unpruned model, which runs on what the student's encoder reads."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_l0prune.core.plan import structure_of
from espnet_l0prune.networks.espnet_ssl import masks_of
from espnet_l0prune.networks.sites import find_sites, layers_of
from espnet_l0prune.networks.speakers import reordered
from espnet_l0prune.networks.transducer import chunks_fixed
from espnet_l0prune.networks.whisper import augmenting, reads_waveform
from espnet_l0prune.plugin.experiment import load_model
from espnet_l0prune.plugin.heads import (
    after_encoder,
    ctcs_of,
    is_transducer,
    joint_network_of,
    logits_of,
    output_size_of,
)
from espnet_l0prune.plugin.inputs import reads_tokens
from espnet_l0prune.plugin.trace import Trace, record

BEFORE_ENCODER = "frontend", "normalize", "preencoder"
# Arguments of `encode` that have other names in a batch, in slu
ALIASES = {"transcript_pad": "transcript", "transcript_pad_lens": "transcript_lengths"}


def _copied(value: Any) -> Any:
    """Return a copy of a tensor, as ESPnet writes into some that it is given."""
    return value.clone() if isinstance(value, Tensor) else value


def _type(module: nn.Module | None) -> str:
    return type(module).__name__


def _differ(frontend: nn.Module | None, other: nn.Module | None) -> bool:
    """Return whether a front end is pruned, or was cut out of another one."""
    sites = find_sites(frontend)
    gated = any(site.gates for site in sites)
    return gated or structure_of(sites) != structure_of(find_sites(other))


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
        self.has_own_frontend = _differ(student.frontend, self.model.frontend)
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
                ("an encoder output of size", lambda m: output_size_of(m.encoder))
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
        apart = apart or self.has_own_frontend
        chunks = chunks_fixed(self.model.encoder, student.hidden_from_chunks)
        with chunks, record(self.model, self.has_own_frontend) as trace:
            if apart:
                with self._augmented_as(student):
                    self.model.encode(**inputs)
            else:
                features = zip(
                    ("speech", "speech_lengths"), student.encoder_args, strict=False
                )
                with self._without_front_end():
                    self.model.encode(**inputs | dict(features))
            if student.speakers is not None and trace.memory is not None:
                trace.memory = reordered(trace.memory, student.speakers)
            joint_network, memory = joint_network_of(self.model), trace.memory
            for name, ctc in ctcs_of(self.model).items():
                early = student.is_early(name)
                logits = logits_of(ctc)
                trace.ctc_out[name] = logits(trace.encoder_out if early else memory)
                if self.has_same_between:
                    between = trace.between.items()
                    trace.between_out = {i: logits(hidden) for i, hidden in between}
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
        frontend, switches = self.model.frontend, [switch]
        masks = {k: m for k, m in masks_of(frontend).items() if k in student.masks}
        own, owner.specaug = owner.specaug, student.augmentation
        if masks:
            switches += [frontend, frontend.upstream]
            again = {k: student.masks[k].by(mask) for k, mask in masks.items()}
            frontend.upstream.util_modules.update(again)
        for module in switches:
            module.training = True  # of it alone: those in it stay as they are
        try:
            yield
        finally:
            for module in switches:
                module.training = False
            owner.specaug = own
            if masks:
                frontend.upstream.util_modules.update(masks)
