"""Each constraint on a convex problem with a known solution, and against cooper."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from espnet_l0prune.core.constraints import (
    ControlledL2Constraint,
    InequalityConstraint,
    LagrangianConstraint,
    NuPIConstraint,
    PenaltyConstraint,
)

H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
CENTRE = torch.tensor([0.3, 0.1], dtype=torch.float64)
W = torch.tensor([0.5, 0.5], dtype=torch.float64)  # S = W x


def solve(constraint, target: float, steps: int = 4000):
    """min (x - CENTRE) H (x - CENTRE) / 2, held by a constraint: x, multipliers, path."""
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    multipliers, path = constraint.start(), []
    for _ in range(steps):
        shortfall = target - W @ x
        d = x - CENTRE
        loss = d @ H @ d / 2 + constraint.penalty(shortfall, multipliers, -x)
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x -= 0.05 * gradient
        constraint.update_(float(shortfall), multipliers)
        path.append(float(W @ x.detach()))
    return x.detach(), multipliers, path


def optimum(target: float):
    """H (x - CENTRE) = lambda W with W x = target."""
    inverse = torch.linalg.inv(H)
    multiplier = (target - W @ CENTRE) / (W @ inverse @ W)
    return CENTRE + multiplier * inverse @ W, float(multiplier)


EQUALITIES = {
    "lagrangian": (LagrangianConstraint(0.05, lambda2=1.0), "lambda1"),
    "nupi": (NuPIConstraint(0.05, kp=5.0), "lambda"),
    "plain ascent": (NuPIConstraint(0.05, kp=0.0), "lambda"),
}


@pytest.mark.parametrize("name", EQUALITIES)
@pytest.mark.parametrize("target", [0.7, 0.1])
def test_an_equality_is_met_from_both_sides(name, target):
    constraint, multiplier = EQUALITIES[name]
    x, multipliers, _ = solve(constraint, target)
    best, value = optimum(target)
    torch.testing.assert_close(x, best, atol=1e-6, rtol=0)
    assert multipliers[multiplier] == pytest.approx(value, abs=1e-6)


def test_an_inequality_binds_only_where_it_must():
    x, multipliers, _ = solve(InequalityConstraint(0.05, restart=False), 0.7)
    best, value = optimum(0.7)
    torch.testing.assert_close(x, best, atol=1e-6, rtol=0)
    assert multipliers["lambda"] == pytest.approx(value, abs=1e-6)
    for restart in (False, True):  # met by the free optimum, where S = 0.2
        x, multipliers, _ = solve(InequalityConstraint(0.05, restart), 0.1)
        torch.testing.assert_close(x, CENTRE, atol=1e-6, rtol=0)
        assert multipliers["lambda"] == 0


def test_restarts_forget_what_ascent_piled_up():
    """While the target is missed they ascend alike; beyond it only one lets go."""
    paths = [solve(InequalityConstraint(0.5, r), 0.7)[2] for r in (False, True)]
    crossed = next(i for i, s in enumerate(paths[0]) if s > 0.7)
    assert paths[0][: crossed + 1] == paths[1][: crossed + 1]
    assert max(paths[1]) < max(paths[0])
    late = paths[1][-500:]
    assert max(late) > 0.7  # it comes back again and again


def test_nupi_oscillates_less_than_plain_ascent():
    overshoot = {kp: max(solve(NuPIConstraint(0.3, kp), 0.7)[2]) for kp in (0.0, 5.0)}
    assert overshoot[5.0] - 0.7 < 0.5 * (overshoot[0.0] - 0.7)


def test_a_price_moves_the_optimum_by_its_gradient():
    x, multipliers, _ = solve(PenaltyConstraint(0.4), 0.7)
    best = CENTRE + 0.4 * torch.linalg.inv(H) @ W
    torch.testing.assert_close(x, best, atol=1e-9, rtol=0)
    assert multipliers == {}


@pytest.mark.parametrize("target", [0.7, 0.1])
def test_the_centre_of_a_controlled_l2_penalty_goes_where_the_target_is_met(target):
    """(H + 2 w) x = H CENTRE - 2 w c at W x = target; the x stand for -log_alpha."""
    weight = 0.5
    x, multipliers, _ = solve(ControlledL2Constraint(0.05, 0.0, weight), target)
    inverse = torch.linalg.inv(H + 2 * weight * torch.eye(2, dtype=torch.float64))
    one = torch.ones(2, dtype=torch.float64)
    centre = float((W @ inverse @ H @ CENTRE - target) / (2 * weight * W @ inverse @ one))
    best = inverse @ (H @ CENTRE - 2 * weight * centre * one)
    torch.testing.assert_close(x, best, atol=1e-6, rtol=0)
    assert multipliers["centre"] == pytest.approx(centre, abs=1e-6)


@given(
    errors=st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    kp=st.floats(0, 10),
    ki=st.floats(0.1, 10),
    nu=st.floats(0, 0.99),
)
def test_nupi_is_coopers(errors, kp, ki, nu):
    torch_optimizers = pytest.importorskip("cooper.optim.torch_optimizers")
    ours = NuPIConstraint(0.1, kp, ki, nu)
    multipliers = ours.start()
    theirs = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    gains = [torch.tensor([gain], dtype=torch.float64) for gain in (kp, ki)]
    optimizer = torch_optimizers.nuPI(
        [theirs],
        lr=0.1,
        Kp=gains[0],
        Ki=gains[1],
        ema_nu=nu,
        init_type=torch_optimizers.nuPIInitType.ZEROS,
        maximize=True,
    )
    for error in errors:
        theirs.grad = torch.tensor([error], dtype=torch.float64)
        optimizer.step()
        ours.update_(error, multipliers)
        assert multipliers["lambda"] == pytest.approx(float(theirs), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LagrangianConstraint(0),
            r"multiplier_lr is 0; expected a number in \(0, ",
        ),
        (lambda: NuPIConstraint(kp=-1), "kp is -1"),
        (lambda: NuPIConstraint(nu=1), "nu is 1"),
        (lambda: PenaltyConstraint(-1), "weight is -1"),
        (lambda: ControlledL2Constraint(weight=0), "weight is 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
