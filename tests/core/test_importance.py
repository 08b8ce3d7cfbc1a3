"""Each importance against a second, brute way to have it."""

import copy

import pytest
import torch

from espnet_l0prune.core import importance
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.plan import Plan, plan_of
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.verify import TOLERANCE, difference_of, outputs, require_equal
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.testing.models import budget, disturb_, model
from espnet_l0prune.testing.updates import batch

UNITS = ["heads", "ffn_channels", "conv_channels", "frontend_channels"]
TARGETS = {"params": 0.5, "macs": 0.5}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = model(encoder_conf={"units": UNITS}).eval()
    disturb_(made)
    return made


def some_units(net):
    """A few units of every site: row of the budget, site, kind, unit."""
    for row, (site, kind) in enumerate(budget(net).gates):
        for unit in {0, site.sizes[kind] - 1}:
            yield row, site.name, kind, unit


def without(net, name: str, kind: str, units: list[int]):
    """A copy from which the units are really cut."""
    small = copy.deepcopy(net)
    sites = sites_of(small)
    plan = plan_of(sites).plain()
    plan[name][kind] = [u for u in plan[name][kind] if u not in units]
    cut_(small, sites, Plan(plan))
    return small


def owned(net, value) -> list[float]:
    """What a unit's cut takes of a value of all weights, for `some_units`."""
    other = copy.deepcopy(net)
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    for mine, theirs in pairs:
        theirs.data = value(mine)

    def total(module) -> float:
        alphas = {id(g.log_alpha) for g in budget(module).gates.values()}
        return sum(float(p.sum()) for p in module.parameters() if id(p) not in alphas)

    return [
        total(other) - total(without(other, name, kind, [unit]))
        for _, name, kind, unit in some_units(net)
    ]


def scores_of(net, scores) -> list[float]:
    return [float(scores[row][unit]) for row, _, _, unit in some_units(net)]


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_norm_of_what_a_cut_takes(net, p):
    net = copy.deepcopy(net).double()
    scores = importance.magnitude(budget(net), p)
    norms = [x ** (1 / p) for x in owned(net, lambda w: w.detach().abs() ** p)]
    kinds = [kind for _, _, kind, _ in some_units(net)]
    ratios = [a / b for a, b in zip(scores_of(net, scores), norms, strict=True)]
    for kind in UNITS:  # up to the mean of the kind
        of_kind = [r for r, k in zip(ratios, kinds, strict=True) if k == kind]
        assert of_kind == pytest.approx([of_kind[0]] * len(of_kind), rel=1e-6)
        rows = [
            s for s, (_, k) in zip(scores, budget(net).gates, strict=True) if k == kind
        ]
        assert float(torch.cat(rows).mean()) == pytest.approx(1)


def test_fisher_sums_over_what_a_cut_takes(net):
    asked, run_, data = copy.deepcopy(net), copy.deepcopy(net), [batch(0), batch(1)]
    scores = importance.fisher(budget(asked), asked, data)
    squares = [torch.zeros_like(w) for w in run_.parameters()]
    for one in data:
        run_.zero_grad()
        importance.loss_of(run_, one).backward()
        for w, total in zip(run_.parameters(), squares, strict=True):
            total += 0 if w.grad is None else w.grad.square() / 2
    fresh = copy.deepcopy(net).double()
    h = dict(zip(fresh.parameters(), squares, strict=True))
    expected = owned(fresh, lambda w: w.detach() ** 2 * h[w] / 2)
    assert scores_of(net, scores) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_taylor_is_the_slope_of_the_gate(net):
    """By finite differences of the layer that consumes the unit that matters most."""
    net, data, step = copy.deepcopy(net), batch(0), 0.02
    scores = importance.taylor(budget(net), net, [data])
    consumers = {"feed_forward": "w_2", "self_attn": "linear_out"}
    consumers |= {"feed_forward_macaron": "w_2", "conv_module": "pointwise_conv2"}
    for score, (site, _) in zip(scores, budget(net).gates, strict=True):
        *block, name = site.name.split(".")
        if name in consumers:
            module = net.encoder.get_submodule(".".join([*block, name]))
            weight = getattr(module, consumers[name]).weight
            unit, width = int(score.argmax()), weight.size(1) // len(score)
            features, losses = slice(unit * width, (unit + 1) * width), []
            was = weight.detach().clone()
            for factor in (1 + step, 1 - step):
                weight.data[:, features] = was[:, features] * factor
                losses.append(float(importance.loss_of(net, data)))
            weight.data.copy_(was)
            slope = (losses[0] - losses[1]) / (2 * step)
            found = float(score[unit]) ** 0.5
            assert found == pytest.approx(abs(slope), rel=0.02, abs=1e-3), site.name


def test_removal_harms_as_a_real_cut_does(net):
    data = [batch(0), batch(1)]
    loss = importance.removal(budget(net), importance.task_loss(net, data))
    shift = importance.latent_shift(budget(net), net, data)
    norms = importance.magnitude(budget(net))

    @torch.no_grad()
    def latents(model):
        outs = []
        for one in data:
            out, lengths = model.encode(one["speech"].clone(), one["speech_lengths"])
            outs += [x[:n] for x, n in zip(out, lengths, strict=True)]
        whole = torch.cat(outs)
        return whole.mean(0), whole.std(0)

    @torch.no_grad()
    def task(model):
        return sum(float(importance.loss_of(model, one)) for one in data) / 2

    mean, std = latents(net)
    for row, name, kind, unit in some_units(net):
        if unit:
            continue
        groups = norms[row].argsort().tensor_split(min(8, len(norms[row])))
        (group,) = (g for g in groups if unit in g)
        small = without(net, name, kind, group.tolist())
        harm = (task(small) - task(net)) / len(group)
        assert float(loss[row][unit]) == pytest.approx(harm, rel=1e-2, abs=1e-4)
        moved = latents(small)
        far = float((moved[0] - mean).norm() + (moved[1] - std).norm()) / len(group)
        assert float(shift[row][unit]) == pytest.approx(far, rel=1e-3, abs=1e-6)


def test_the_block_that_goes_is_the_one_that_is_missed_least_in_a_narrow_network():
    """By real cuts."""
    torch.manual_seed(0)
    net = model(encoder_conf={"units": [*UNITS, "blocks"], "num_blocks": 4}).eval()
    disturb_(net)
    data, goal = [batch(0), batch(1)], TARGETS
    harm, counted = importance.task_loss(net, data), budget(net)
    scores = importance.width_then_depth(counted, goal, harm)
    width = importance.per_cost(counted, importance.removal(counted, harm, UNITS), goal)
    narrow = select(counted, goal, scores=width)

    def cut(plan) -> tuple[float, float]:
        """The loss, and what is left, in shares of the whole."""
        small = copy.deepcopy(net)
        sites = sites_of(small)
        decide_(sites, plan)
        left = sum(1 - gone for gone in budget(small).actual().values())
        cut_(small, sites, plan)
        return importance.task_loss(small, data)(), left

    def without_block(plan, i: int):
        return plan | Plan({f"encoders.{i}": {"blocks": []}})

    loss, left = cut(narrow)
    harms = []
    for i in range(4):
        fewer = cut(without_block(narrow, i))
        harms.append((fewer[0] - loss) / (left - fewer[1]))
    least = harms.index(min(harms))
    plan = select(counted, goal, scores=scores)
    gone = [i for i in range(4) if not plan[f"encoders.{i}"]["blocks"]]
    assert gone == [least]
    for (_, kind), found, expected in zip(counted.gates, scores, width, strict=True):
        assert kind == "blocks" or torch.equal(found, expected)
    decide_(sites_of(net), plan)
    assert all(counted.actual()[cost] >= target for cost, target in goal.items())


def test_the_lowest_scores_go_first(net):
    net = copy.deepcopy(net)
    torch.manual_seed(1)
    scores = importance.random(budget(net))
    plan = select(budget(net), TARGETS, scores=scores)
    decide_(sites_of(net), plan)
    actual = budget(net).actual()
    assert all(actual[cost] >= goal for cost, goal in TARGETS.items())
    kept, gone = [], []
    for (site, kind), score in zip(budget(net).gates, scores, strict=True):
        units = plan[site.name][kind]
        kept += score[units].tolist()
        gone += [s for u, s in enumerate(score.tolist()) if u not in units]
    # but for the last few, which are passed over to land
    assert sorted(gone)[-8] < sorted(kept)[8]


def test_evenly_every_module_keeps_the_same_share(net):
    norms = importance.magnitude(budget(net))
    plan = select(budget(net), {"params": 0.5}, scores=importance.evenly(norms))
    shares = []
    for (site, kind), norm in zip(budget(net).gates, norms, strict=True):
        kept = plan[site.name][kind]
        gone = [u for u in range(len(norm)) if u not in kept]
        assert norm[kept].min() >= norm[gone].max()
        shares.append((len(kept) / len(norm), 1 / len(norm)))
    assert all(abs(share - shares[0][0]) <= 2 * one for share, one in shares)


def test_the_last_blocks_go_first():
    net = model(encoder_conf={"units": ["blocks"], "num_blocks": 5})
    counted = budget(net)
    whole = counted.totals["params"]
    block = count_parameters(net.encoder.encoders[0])
    for gone in range(6):
        target = {"params": gone * block / whole - 1e-9}
        plan = select(counted, target, scores=importance.depth(counted))
        kept = [bool(plan[f"encoders.{i}"]["blocks"]) for i in range(5)]
        assert kept == [True] * (5 - gone) + [False] * gone
    with pytest.raises(ValueError, match="units are heads; expected blocks alone"):
        importance.depth(budget(model(encoder_conf={"units": ["heads"]})))


@pytest.mark.parametrize("kind", ["blocks", "conv_modules"])
def test_units_without_weights_of_their_own_are_refused(kind):
    net = model(encoder_conf={"units": [kind]})
    with pytest.raises(ValueError, match=f"{kind} own no weights"):
        importance.magnitude(budget(net))


def test_the_price_of_a_unit_is_what_its_cut_saves(net):
    """But for what it shares with others."""
    ones = [torch.ones_like(s) for s in importance.random(budget(net))]
    shares = importance.per_cost(budget(net), ones, ["params"])
    whole = budget(net).totals["params"]
    taken = [n / whole for n in owned(net, torch.ones_like)]
    assert [1 / s for s in scores_of(net, shares)] == pytest.approx(taken, rel=1e-5)


def test_one_that_must_stay_is_the_best(net):
    scores = [torch.arange(len(s)).float() for s in importance.random(budget(net))]
    plan = select(budget(net), {"params": 0.7}, scores=scores)
    for site, kind in budget(net).gates:
        if kind == "frontend_channels":
            assert site.sizes[kind] - 1 in plan[site.name][kind]


def test_scores_leave_a_block_a_feature_that_the_stream_keeps():
    """Where the best of the block is none of the stream's best."""
    kinds = ["width", "block_width", "ffn_channels", "conv_channels"]
    for seed in range(8):
        made = model(encoder_conf={"units": kinds}).eval()
        counted = budget(made)
        generator = torch.Generator().manual_seed(seed)
        scores = [
            torch.rand(len(gate.log_alpha), generator=generator)
            for gate in counted.gates.values()
        ]
        plan = select(counted, {"params": 0.6}, scores=scores)
        decide_(sites_of(made), plan)
        expected, remaining = outputs(made), counted.remaining()
        small = copy.deepcopy(made)
        cut_(small, sites_of(small), plan_of(sites_of(small)))
        assert count_parameters(small.encoder) == round(remaining)
        require_equal(difference_of(expected, outputs(small)), TOLERANCE)
