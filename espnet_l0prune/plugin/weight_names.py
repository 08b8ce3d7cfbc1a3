"""Weights are read by the names of any ESPnet, and kept by names that all of them read.

Until 202609 the last layer of a subsampling was `out.0`, and its positional encoding
`out.1`; since then they are `out` and `pos_enc`. A subsampling by 8 has had these since
2024, with OWSM-CTC. ESPnet 202611 reads both, but not by `init_param`, where it silently
drops the old names and leaves the layer as it was initialized. Up to 202511 it reads its
own alone, and silently leaves the layer, too.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from espnet_l0prune.networks.espnet_modules import SUBSAMPLINGS, Conv2dSubsampling8

OLD = {"out.weight": "out.0.weight", "out.bias": "out.0.bias", "pos_enc.": "out.1."}


def portable(
    model: nn.Module, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return a model's weights by the names that every ESPnet reads.

    Args:
        model: the model
        state: weights of this model under any ESPnet's names; None for its own
    """
    state = dict(model.state_dict() if state is None else state)
    for module, names in _subsamplings(model):
        kept = {v: k for k, v in names.items()} if _is_of_2024(module) else names
        _rename_(state, kept)
    return state


def read_any_names_(network: nn.Module) -> None:
    """Let a network load weights under the names of any ESPnet.

    This includes states in which `init_param` has put them beside this ESPnet's names.
    """
    for module, names in _subsamplings(network):
        if not isinstance(module.out, nn.Sequential):  # this is ESPnet 202609 or later
            names = {old: new for new, old in names.items()}
        network.register_load_state_dict_pre_hook(partial(_before_loading, names))


def _before_loading(
    names: Mapping[str, str], module: nn.Module, state: dict, prefix: str, *args: Any
) -> None:
    _rename_(state, {prefix + one: prefix + other for one, other in names.items()})


def _is_of_2024(module: nn.Module) -> bool:
    """Return whether every ESPnet that we know has the new names in a subsampling."""
    return isinstance(module, Conv2dSubsampling8)


def _subsamplings(network: nn.Module) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield each subsampling, with the old names of its parts by the new ones."""
    for path, module in network.named_modules():
        if isinstance(module, SUBSAMPLINGS):
            yield module, {f"{path}.{new}": f"{path}.{old}" for new, old in OLD.items()}


def _rename_(state: dict, names: Mapping[str, str]) -> None:
    """Change prefixes of names; a weight that had the new name before is replaced."""
    for key in list(state):
        for one, other in names.items():
            if key.startswith(one):
                state[other + key.removeprefix(one)] = state.pop(key)
