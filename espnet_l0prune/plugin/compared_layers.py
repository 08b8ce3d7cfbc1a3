"""The layerwise distillation compares outputs of blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_l0prune.core.distillation import LAYER_LOSSES, LAYER_MAPS
from espnet_l0prune.networks.blocks import block_of
from espnet_l0prune.networks.depth import is_closed
from espnet_l0prune.networks.sites import layers_of
from espnet_l0prune.networks.stream import open_stream
from espnet_l0prune.networks.streaming import in_time
from espnet_l0prune.plugin.trace import Trace

NAMES = {"encoder": "loss_layer", "frontend": "loss_frontend_layer"}


def compared_layers(
    model: nn.Module, student: Trace, teacher: Trace
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of outputs of the compared blocks, in the features that both have.

    They are projected if there is a projection. The student's blocks are those that were
    not cut and whose gate is not closed.

    Args:
        model: the student, a `model: l0_distill`
        student, teacher: a forward of each
    """
    index, matrix = open_stream(model.encoder), model.projection

    def shared(hidden: Tensor) -> Tensor:
        """Return the features that both have; width-cut networks have no others."""
        if index is None or hidden.size(-1) == len(index):
            return hidden
        return hidden.index_select(-1, index)

    students: dict[int, Tensor | None] = {}
    teachers = teacher.blocks
    for i, block in enumerate(layers_of(model.encoder)):
        if not is_closed(block):
            hidden = student.blocks.get(i)  # None for a layer that was dropped
            if hidden is not None and model.layer_input == "teacher":
                cut = hidden.size(-1) < teachers[i].size(-1)
                features = index if cut else None
                read = teacher.block_args[i], teacher.block_kwargs[i]
                hidden = block_of(block).run(*read, features)
                hidden = in_time(model.encoder, hidden)
            students[i] = None if hidden is None else shared(hidden)
    if matrix is not None and model.layer_projection == "student":
        matrix = matrix if index is None else matrix.index_select(1, index)
        students = {
            i: None if hidden is None else F.linear(hidden, matrix)
            for i, hidden in students.items()
        }
    else:
        if matrix is not None:
            teachers = {i: F.linear(hidden, matrix) for i, hidden in teachers.items()}
        teachers = {i: shared(hidden) for i, hidden in teachers.items()}
    places = LAYER_MAPS[model.layer_map](students, teachers, student.encoder_lengths)
    pairs = ((students[i], teachers[j]) for i, j in places)
    return [(mine, other) for mine, other in pairs if mine is not None]


def compared_frontend_layers(
    model: nn.Module, student: Trace, teacher: Trace
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of outputs of the compared blocks of a self-supervised front end.

    There are none where the teacher has read what the student's front end made. See
    `compared_layers` for the arguments.
    """
    if not teacher.frontend_blocks:
        return []
    students = {
        i: student.frontend_blocks[i]
        for i, block in enumerate(layers_of(model.frontend))
        if not is_closed(block)
    }
    choose, lengths = LAYER_MAPS[model.layer_map], student.frontend_lengths
    places = choose(students, teacher.frontend_blocks, lengths)
    return [(students[i], teacher.frontend_blocks[j]) for i, j in places]


def layer_losses(
    model: Any, student: Trace, teacher: Trace
) -> dict[str, tuple[float, Tensor]]:
    """Return the losses between layers by name, with their weights.

    See `compared_layers` for the arguments.
    """
    found = {
        "encoder": (compared_layers, student.encoder_lengths),
        "frontend": (compared_frontend_layers, student.frontend_lengths),
    }
    losses = {}
    for network, (choose, lengths) in found.items():
        if pairs := choose(model, student, teacher):
            students, teachers = zip(*pairs, strict=True)
            chosen = model.chosen_layer_weights.get(network)
            weight = chosen.value() if chosen else model.layer_weight or 0.0
            loss = LAYER_LOSSES[model.layer_loss](students, teachers, lengths)
            losses[NAMES[network]] = weight, loss
    return losses


def measure_layers_(model: Any, loss: Tensor, student: Trace, teacher: Trace) -> None:
    """Measure the losses between layers of a student whose hidden states are all 0.

    The weights that are chosen by them take another batch into account.

    Args:
        model: the student
        loss: the task's loss, a scalar
        student, teacher: a forward of each
    """
    found = {
        "encoder": (teacher.blocks, teacher.encoder_lengths),
        "frontend": (teacher.frontend_blocks, student.frontend_lengths),
    }
    for network, weight in model.chosen_layer_weights.items():
        blocks, lengths = found[network]
        if blocks and not weight.is_fixed():
            states = [*blocks.values()]
            nothing = [torch.zeros_like(state) for state in states]
            weight.update_(loss, LAYER_LOSSES[model.layer_loss](nothing, states, lengths))
