"""An ESPnet model is counted by running it on silence, to see what it computes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.costs import TIME
from espnet_l0prune.core.goal import NETWORKS, Goal
from espnet_l0prune.core.parts import split
from espnet_l0prune.core.profile import Profile
from espnet_l0prune.core.sites import Call, Shapes, Site
from espnet_l0prune.core.terms import count_parameters, terms_of
from espnet_l0prune.networks.block import Block
from espnet_l0prune.networks.espnet_modules import TOO_SHORT
from espnet_l0prune.networks.s3prl import attending_by_layers
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.networks.speakers import one_after_another
from espnet_l0prune.networks.whisper import most_tokens
from espnet_l0prune.plugin.heads import (
    ctcs_of,
    is_multi_decoder,
    is_transducer,
    logits_of,
    output_size_of,
    reads_early,
)
from espnet_l0prune.plugin.inputs import prompt, silence


def sites_of(model: nn.Module) -> list[Site]:
    """Return the sites of an ESPnet model's front end, encoder and decoder."""
    networks = [getattr(model, name, None) for name in NETWORKS]
    return [site for network in networks for site in find_sites(network)]


def make_budget(model: nn.Module, goal: Goal) -> Budget:
    """Return the budget of an ESPnet model, in which gates are not counted.

    Args:
        model: ESPnet's model
        goal: says what is counted, and for how much speech

    Raises:
        ValueError: a scope that the model does not have, a profile of another encoder
    """
    network = _scope(model, goal)
    sites = sites_of(model) if goal.scope == "model" else find_sites(network)
    with evaluation(model):
        shapes = call_shapes(network, lambda: run(model, goal))
    profile = goal.measured
    if profile is not None:
        check_profiled(network, profile)
    budget = Budget(sites, terms_of(network, sites, shapes), profile)
    if profile is not None:
        has = {"params": profile.parameters, "macs": profile.macs}
        found = {cost: round(budget.totals[cost]) for cost in has}
        if found != has:
            raise ValueError(
                f"the profile is that of an encoder with {has}, this one has {found}; "
                "expected a profile of this one, before anything is pruned"
            )
    return budget


def promised_time(encoder: nn.Module, profile: Profile) -> float:
    """Return the seconds that a profile promises of an encoder without gates.

    Raises:
        ValueError: gates, or a profile of another encoder
    """
    sites = find_sites(encoder)
    if any(site.gates for site in sites):
        raise ValueError(
            "the encoder has gates, which compute in full until they are cut; expected "
            "a dense experiment, or one that was cut"
        )
    check_profiled(encoder, profile)
    if (count := count_parameters(encoder)) > profile.parameters:
        raise ValueError(
            f"the encoder has {count:,} parameters, and that of the profile has "
            f"{profile.parameters:,}; expected that one, or one that was cut from it"
        )
    return Budget(sites, [], profile).totals[TIME]


def check_profiled(encoder: nn.Module, profile: Profile) -> None:
    """Raise ValueError for a profile of another encoder, by its class and size."""
    found = encoder_name(encoder), output_size_of(encoder)
    if found != (profile.encoder, profile.size):
        raise ValueError(
            f"the profile is that of a {profile.encoder} of {profile.size} features, and "
            f"the encoder a {found[0]} of {found[1]}; expected a profile of this one"
        )


def encoder_name(encoder: nn.Module) -> str:
    """Return the name of ESPnet's class of an encoder, which ours are subclasses of."""
    classes = type(encoder).__mro__
    return next(c.__name__ for c in classes if not c.__module__.startswith(__package__))


def make_parts(model: nn.Module, goal: Goal, budget: Budget) -> dict[str, Budget]:
    """Return the budgets that must meet the targets, by name.

    That is the whole budget, named "", or one for each part of the network.

    Args:
        model: ESPnet's model
        goal: says what the parts are
        budget: the budget of the whole scope

    Raises:
        ValueError: gates that reach beyond a part
    """
    if goal.per is None:
        return {"": budget}
    return split(budget, _scope(model, goal), goal.per)


def _scope(model: nn.Module, goal: Goal) -> nn.Module:
    network = model if goal.scope == "model" else getattr(model, goal.scope, None)
    if network is None:
        raise ValueError(
            f"sparsity_goal_conf: scope is {goal.scope}, but this model has no "
            f"{goal.scope}; expected encoder"
        )
    return network


@torch.no_grad()
def run(model: nn.Module, goal: Goal) -> None:
    """Encode silence of the goal's length, and decode as many tokens as the goal says.

    Nothing is decoded where the encoder alone is counted.

    Raises:
        ValueError: more tokens than a decoder has positions for; see `encode_silence`
    """
    most = most_tokens(model.decoder)
    if most is not None and goal.tokens > most:
        raise ValueError(
            f"sparsity_goal_conf: tokens is {goal.tokens}; expected at most {most}, as "
            "this decoder has no more positions"
        )
    outputs = []
    hook = model.encoder.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        encoder_out, lengths = encode_silence(model, goal)
    finally:
        hook.remove()
    if goal.scope in ("frontend", "encoder"):
        return
    for name, ctc in ctcs_of(model).items():
        early = reads_early(model, name)
        logits_of(ctc)(Block.stream(outputs[0]) if early else encoder_out)
    if model.decoder is None or is_transducer(model):
        return
    device = encoder_out.device
    shape = len(encoder_out), goal.tokens  # as many texts as speakers
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    count = torch.full_like(tokens[:, 0], goal.tokens)
    heard = encoder_out, lengths
    if is_multi_decoder(model):  # it recognizes first, and translates its states
        model.extra_asr_decoder(*heard, tokens, count)
        states = encoder_out.new_zeros(*shape, encoder_out.size(-1))
        read, read_lengths, _ = model.md_encoder(states, count)
        more = heard if model.use_speech_attn else ()
        model.decoder(read, read_lengths, tokens, count, *more)
    else:
        model.decoder(*heard, tokens, count)


def encode_silence(model: nn.Module, goal: Goal) -> tuple[Tensor, Tensor]:
    """Return the encoder's output for silence, (1, time, size), and its length, (1,).

    If it answers for several speakers, they take the place of the 1.

    Args:
        model: ESPnet's model
        goal: says how long the silence is

    Raises:
        ValueError: audio that is too short for the subsampling
    """
    speech = silence(model, goal.seconds)
    lengths = torch.tensor([speech.size(1)], device=speech.device)
    try:
        encoder_out, lengths = model.encode(speech, lengths, **prompt(model))
    except TOO_SHORT as e:
        raise ValueError(
            f"sparsity_goal_conf: seconds is {goal.seconds}: {e}; expected more"
        ) from e
    if isinstance(encoder_out, tuple):  # there is intermediate CTC
        encoder_out = encoder_out[0]
    return one_after_another(encoder_out, lengths)


def call_shapes(network: nn.Module, forward: Callable[[], None]) -> Shapes:
    """Return the shapes of every module's calls in one forward, in evaluation mode.

    Neither the modules' modes nor the random state are changed.

    Args:
        network: the network whose modules are watched
        forward: runs the network
    """
    shapes: Shapes = {}

    def note(module: nn.Module, args: tuple, output) -> None:
        if isinstance(output, Tensor):
            inputs = tuple(a.shape for a in args if isinstance(a, Tensor))
            shapes.setdefault(module, []).append(Call(inputs, output.shape))

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        with (
            evaluation(network),
            attending_by_layers(network),
            torch.random.fork_rng(),
            torch.no_grad(),
        ):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode within a `with` block.

    Afterwards each module has its own mode again.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
