import torch

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import ScaleInput
from espnet_l0prune.core.optim import L0AdamW, Progress


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    net[1].gate = HardConcrete(4)
    ScaleInput(net[1].gate).attach_(net[1])
    return net


def test_gates_keep_their_rate_under_a_scheduler():
    net = network()
    optim = L0AdamW(net.parameters(), lr=1.0, gate_lr=0.5, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: 0.001)
    before = net[1].gate.log_alpha.clone()
    net[1].gate.log_alpha.grad = torch.ones(4)
    optim.step()
    scheduler.step()
    # Adam's first step is its rate; no weight decay
    torch.testing.assert_close(before - net[1].gate.log_alpha, torch.full((4,), 0.5))
    assert [g["lr"] for g in optim.param_groups] == [0.001, 0.001]


def test_weights_move_exactly_as_under_adamw():
    ours, theirs = network(), network()
    conf = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.1}
    optims = (
        L0AdamW(ours.parameters(), **conf),
        torch.optim.AdamW([*theirs[0].parameters(), *theirs[1].parameters()], **conf),
    )
    x = torch.randn(8, 4)
    for _ in range(5):
        for net, optim in zip((ours, theirs), optims, strict=True):
            optim.zero_grad()
            net(x).square().sum().backward()
            optim.step()
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert torch.equal(ours[0].bias, theirs[0].bias)


def test_groups_by_type_however_they_arrive():
    # ESPnet's exclude_weight_decay adds groups later, with all options repeated
    net, conf = network(), {"lr": 1e-3, "gate_lr": 0.1}
    optim = L0AdamW([net[0].weight], **conf)
    later = [net[0].bias, net[1].gate.log_alpha]
    optim.add_param_group({"params": later, **conf, "weight_decay": 0.0})
    (gates,) = [g for g in optim.param_groups if g["params"][0] is later[1]]
    assert len(gates["params"]) == 1
    assert gates["weight_decay"] == 0
    assert sum(len(g["params"]) for g in optim.param_groups) == 3
    # Adam's first step is the rate: the bias must not move at the gates'
    before = {p: p.clone() for p in later}
    for p in later:
        p.grad = torch.ones(4)
    optim.step()
    for p, rate in zip(later, (1e-3, 0.1), strict=True):
        torch.testing.assert_close(before[p] - p, torch.full((4,), rate))


def test_hooks_run_once_beside_other_optimizers():
    torch.optim.Adam(network()[0].parameters())
    torch.optim.AdamW(network()[0].parameters())
    calls = []
    optim = L0AdamW(network().parameters())
    optim.register_step_post_hook(lambda *_: calls.append(1))
    optim.step()
    assert calls == [1]


def test_a_closure_runs_before_the_move():
    net = network()
    optim = L0AdamW(net.parameters())
    before = net[0].weight.clone()

    def closure():
        assert torch.equal(net[0].weight, before)
        loss = net(torch.ones(1, 4)).sum()
        loss.backward()
        return loss

    assert float(optim.step(closure)) == float(network()(torch.ones(1, 4)).sum())
    assert not torch.equal(net[0].weight, before)


def test_progress_travels_with_the_optimizer():
    optim = L0AdamW(network().parameters())
    found = {"params": {"lambda1": 1.5}, "macs": {"lambda1": 2.5}}
    optim.progress = Progress(7, found, {"order": "joint"}, 3)
    state = optim.state_dict()
    other = L0AdamW(network().parameters())
    other.load_state_dict(state)
    assert other.progress == optim.progress
    other.progress.multipliers["params"]["lambda1"] = 0.0
    again = L0AdamW(network().parameters())
    again.load_state_dict(state)  # which nobody has changed
    assert again.progress == optim.progress
    assert again.param_groups[1].keys() == optim.param_groups[1].keys()
