"""The layerwise distillation compares these outputs of blocks."""

import torch.nn.functional as F
from torch import Tensor, nn

from espnet_l0prune.core.distillation import LAYER_MAPS
from espnet_l0prune.networks.blocks import block_of
from espnet_l0prune.networks.depth import is_closed
from espnet_l0prune.networks.sites import layers_of
from espnet_l0prune.networks.stream import open_stream
from espnet_l0prune.networks.streaming import in_time
from espnet_l0prune.plugin.teacher import Trace


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
