"""The weight of the layers' loss is measured in the first batches, and then stays."""

import copy

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.plugin.layer_weight import BATCHES, SHARE, LayerWeight
from espnet_l0prune.plugin.trace import record
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.updates import batch, train
from tests.plugin.test_training import SCHEDULE, start

MORE = BATCHES + 2
PRUNING = {"sparsity_scheduler": "linear", "sparsity_scheduler_conf": SCHEDULE}
FINE_TUNING = {
    "encoder_conf": {"units": []},
    "optim": "adamw",
    "sparsity_scheduler": None,
    "sparsity_scheduler_conf": {},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teacher") / "dense"
    save_experiment(folder)
    return {
        "teacher_config": str(folder / "config.yaml"),
        "teacher_model_file": str(folder / "model.pth"),
    }


def sizes(net, **data) -> float:
    """The mean square of the valid hidden states of a teacher, in evaluation."""
    with torch.no_grad(), record(net.teacher.model) as trace:
        _, lengths = net.teacher.model.encode(data["speech"], data["speech_lengths"])
    means = [
        torch.cat([h[i, :n] for i, n in enumerate(lengths)]).square().mean()
        for h in trace.blocks.values()
    ]
    return float(sum(means)) / len(means)


def test_it_is_half_of_the_tasks_loss_over_the_layers_own(files, caplog):
    caplog.set_level("INFO")
    net, optimizer = start(model_conf=files, normalize=None)
    history = train(net, optimizer, range(BATCHES))
    task = sum(found["loss_task"] for found in history) / BATCHES
    size = sum(sizes(net, **batch(i)) for i in range(BATCHES)) / BATCHES
    weight = net.chosen_layer_weights["encoder"].value()
    assert weight == pytest.approx(SHARE * task / size, rel=1e-4)
    assert f"layer_weight is {weight:.3g} in the encoder: in the first" in caplog.text
    assert f"the task's loss is {task:.3g}" in caplog.text
    caplog.clear()
    last = train(net, optimizer, range(BATCHES, MORE))[-1]
    assert net.chosen_layer_weights["encoder"].value() == weight
    assert "layer_weight" not in caplog.text
    total = sum(
        scale * last[name]
        for name, scale in {
            "loss_task": 1.0,
            "loss_layer": weight,
            "loss_att_kl": 0.5,
            "loss_ctc_kl": 0.5,
            "loss_sparsity": 1.0,
        }.items()
    )
    assert last["loss"] == pytest.approx(total, rel=1e-5)


def test_validation_measures_nothing(files):
    net, optimizer = start(model_conf=files)
    _, stats, _ = net.eval()(**batch())
    assert net.chosen_layer_weights["encoder"].value() == 0
    assert float(stats["loss_layer"]) >= 0
    train(net, optimizer, range(1))
    weight = net.chosen_layer_weights["encoder"].value()
    net.eval()(**batch(1))
    assert net.chosen_layer_weights["encoder"].value() == weight > 0


@pytest.mark.parametrize("stop", [1, BATCHES - 1, BATCHES + 1])
def test_it_is_resumed_with_the_optimizer(stop, files):
    """Also that of a fine-tuning, whose optimizer is any of ESPnet's."""
    for options in ({"optim_conf": {"gate_lr": 0.3}}, FINE_TUNING):
        nets = []
        for _ in range(2):
            args = arguments(model_conf=files, **{**PRUNING, **options})
            torch.manual_seed(0)
            net = ASRTask.build_model(args)
            nets.append((net, ASRTask.build_optimizers(args, net)[0]))
        (net, optimizer), (other, resumed) = nets
        train(net, optimizer, range(stop))
        other.load_state_dict(copy.deepcopy(net.state_dict()))
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        found = [train(*pair, range(stop, MORE))[-1]["loss"] for pair in nets]
        assert found[0] == found[1]
        one, two = (m.chosen_layer_weights["encoder"].value() for m in (net, other))
        assert one == two > 0


def test_a_loss_that_is_no_number_is_left_out():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    weight = LayerWeight(optimizer)
    for task in (2.0, float("nan"), float("inf"), 4.0):
        weight.update_(torch.tensor(task), torch.tensor(1.5))
    assert weight.value() == pytest.approx(SHARE * 3.0 / 1.5)


def test_states_that_are_all_0_have_no_weight():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    weight = LayerWeight(optimizer)
    weight.update_(torch.tensor(2.0), torch.tensor(0.0))
    assert weight.value() == 0
