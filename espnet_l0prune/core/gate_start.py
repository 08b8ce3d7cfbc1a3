"""Gates can start from an importance that the warm-up measures, instead of all alike.

In the warm-up all gates are 1, and the weights train as ever. The mean of (dL/dz)^2 over
the updates says how the training's loss L, with distillation, depends on a unit's gate z
to the first order (Molchanov et al. 2019, arXiv 1906.10771). Adam has it as the mean
square of a gate's gradients, as clipping leaves them. So the latest updates count most,
and it is saved and resumed with the optimizer. Divided by what the unit costs, it ranks
the units, and the gate of rank k among n, from 1 for the lowest, starts at

    log_alpha = a + d (2 r - 1),    r = (k - 1/2) / n

where a is the log_alpha of `open_probability` P, and a - d that of the least P that is
allowed, 0.982. So the mean of the log_alphas stays as it is. A gate without noise is
still exactly 1, so that the ramp begins with the dense network. And a unit is closed with
a mean probability of about (1 - P) sinh(d) / d: 1.06% instead of 1% by default.
"""

from collections.abc import Collection

import torch
from scipy.stats import rankdata

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.importance import per_cost
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.ranges import RANGES

LEAST_OPEN = RANGES["encoder_conf"]["open_probability"].low


@torch.no_grad()
def start_by_importance_(
    budget: Budget, optimizer: L0AdamW, costs: Collection[str]
) -> None:
    """Move gates that have measured importances to where they start.

    Units of the same importance start alike. Adam forgets the gates' gradients so far.

    Args:
        budget: has the gates, all of them open
        optimizer: has the mean squares of their gradients
        costs: the costs with a target, whose shares are added up

    Raises:
        ValueError: gradients that were no finite numbers
    """
    gates = [*budget.gates.values()]
    alphas = [gate.log_alpha for gate in gates]
    sizes = [len(alpha) for alpha in alphas]
    _, squares = optimizer.moments(alphas)
    with torch.enable_grad():
        scores = torch.cat(per_cost(budget, squares.split(sizes), costs))
    ranks = torch.from_numpy(rankdata(scores.cpu().numpy()))  # the mean rank of equals
    places = 2 * (ranks - 0.5) / len(ranks) - 1
    for gate, place in zip(gates, places.split(sizes), strict=True):
        start = gate.log_alpha_at(gate.open_probability)
        reach = start - gate.log_alpha_at(LEAST_OPEN)
        gate.log_alpha.copy_(start + reach * place)
    optimizer.forget_(alphas)
