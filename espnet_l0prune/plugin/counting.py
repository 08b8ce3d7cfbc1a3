"""Count an ESPnet model, and run it on silence to find out what it computes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.parts import split
from espnet_l0prune.core.sites import Call, Shapes, Site
from espnet_l0prune.core.terms import terms_of
from espnet_l0prune.networks.espnet_modules import TooShortUttError
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.building import SAMPLE_RATE

FRAMES_A_SECOND = 100  # of a model that is fed with features


def is_transducer(model: nn.Module) -> bool:
    """Whether the decoder of an ESPnet model feeds a joint network."""
    return getattr(model, "use_transducer_decoder", False)


def sites_of(model: nn.Module) -> list[Site]:
    """The sites of an ESPnet model's encoder and decoder."""
    return [s for network in (model.encoder, model.decoder) for s in find_sites(network)]


def make_budget(model: nn.Module, goal: Goal) -> Budget:
    """Count an ESPnet model; its gates are not counted.

    Raises:
        ValueError: a scope that the model does not have
    """
    network = _scope(model, goal)
    sites = sites_of(model) if goal.scope == "model" else find_sites(network)
    with evaluation(model):
        shapes = call_shapes(network, lambda: run(model, goal))
    return Budget(sites, terms_of(network, sites, shapes))


def make_parts(model: nn.Module, goal: Goal, budget: Budget) -> dict[str, Budget]:
    """What must meet the targets, by name: the whole budget, named "", or its parts.

    Raises:
        ValueError: gates that belong to no one part
    """
    if goal.per is None:
        return {"": budget}
    return split(budget, _scope(model, goal), goal.per)


def _scope(model: nn.Module, goal: Goal) -> nn.Module:
    network = model if goal.scope == "model" else getattr(model, goal.scope)
    if network is None:
        raise ValueError(
            f"sparsity_goal_conf: scope is {goal.scope}, but this model has no "
            f"{goal.scope}; expected encoder"
        )
    return network


@torch.no_grad()
def run(model: nn.Module, goal: Goal) -> None:
    """Encode silence of the goal's length, and decode as many tokens as it says."""
    encoder_out, lengths = encode_silence(model, goal)
    if model.ctc is not None:
        model.ctc.ctc_lo(encoder_out)
    if model.decoder is not None and not is_transducer(model):
        device = encoder_out.device
        tokens = torch.zeros(1, goal.tokens, dtype=torch.long, device=device)
        count = torch.tensor([goal.tokens], device=device)
        model.decoder(encoder_out, lengths, tokens, count)


def input_size_of(model: nn.Module) -> int:
    """The size of the features that a model without a front end is fed with."""
    return getattr(model, "input_size", None) or model.encoder.input_size


def encode_silence(model: nn.Module, goal: Goal) -> tuple[Tensor, Tensor]:
    """The encoder's output (1, time, size) and its length (1,).

    Raises:
        ValueError: audio that is too short for the subsampling; a model that reads more
            than audio
    """
    if getattr(model, "postdecoder", None) is not None:  # of slu
        raise ValueError(
            "postdecoder: this part of the model reads a transcript beside the audio, so "
            "that nothing can be counted or tried without one; expected a model without"
        )
    parameter = next(model.parameters())
    if model.frontend is None:
        frames = int(goal.seconds * FRAMES_A_SECOND)
        size = input_size_of(model)
        speech = torch.zeros(1, frames, size, device=parameter.device)
    else:
        samples = int(goal.seconds * getattr(model, "sample_rate", SAMPLE_RATE))
        speech = torch.zeros(1, samples, device=parameter.device)
    speech = speech.to(parameter.dtype)
    lengths = torch.tensor([speech.size(1)], device=parameter.device)
    try:
        encoder_out, lengths = model.encode(speech, lengths)
    except TooShortUttError as e:
        raise ValueError(
            f"sparsity_goal_conf: seconds is {goal.seconds}: {e}; expected more"
        ) from e
    if isinstance(encoder_out, tuple):  # with intermediate CTC
        encoder_out = encoder_out[0]
    return encoder_out, lengths


def call_shapes(network: nn.Module, forward: Callable[[], None]) -> Shapes:
    """The shapes of every module's calls in a forward of evaluation mode.

    Neither a module's mode nor the random state changes.

    Args:
        network: whose modules are watched, and put into evaluation mode
        forward: runs it
    """
    shapes: Shapes = {}

    def note(module: nn.Module, args: tuple, output) -> None:
        if isinstance(output, Tensor):
            given = tuple(a.shape for a in args if isinstance(a, Tensor))
            shapes.setdefault(module, []).append(Call(given, output.shape))

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        with evaluation(network), torch.random.fork_rng(), torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module's own mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
