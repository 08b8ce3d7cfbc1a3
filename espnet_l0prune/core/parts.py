"""Where each part of a network must meet the targets by itself, it has its own budget."""

from torch import nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.sites import Site
from espnet_l0prune.core.terms import Term


def split(budget: Budget, network: nn.Module, per: str) -> dict[str, Budget]:
    """Divide a network's budget into one for each part that has gates.

    Args:
        budget: the budget of the whole network
        network: the network that the budget counts
        per: what a part is: a `block`, or all modules of a `kind`

    Returns:
        the budgets, by the parts' names

    Raises:
        ValueError: gates that reach beyond a part, or `uniform` ones with `per` block
    """
    members: dict[str, list[Site]] = {}
    part_of: dict[nn.Module, str] = {}
    for site in budget.sites:
        part = site.part(per)
        if part is not None:
            name, root = part
            part_of.update(dict.fromkeys(root.modules(), name))
        if per == "block" and any(gate.uniform for gate in site.gates.values()):
            raise ValueError(
                "uniform: true keeps as many units in every block, and per: block has "
                "each block find its own; expected one of them"
            )
        if site.gates:
            if part is None:
                raise ValueError(
                    f"a target for each {per} cannot hold {', '.join(site.gates)}, "
                    f"which reach beyond a {per} ({site.name}); expected units without "
                    "them, or one target for all"
                )
            members.setdefault(name, []).append(site)
    modules = dict(network.named_modules())
    terms: dict[str, list[Term]] = {name: [] for name in members}
    for term in budget.terms:
        part_name = part_of.get(modules[term.owner])
        if part_name in members:
            terms[part_name].append(term)
    return {name: Budget(sites, terms[name]) for name, sites in members.items()}
