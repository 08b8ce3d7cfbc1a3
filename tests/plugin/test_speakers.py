"""Speech of several speakers, as ESPnet's `pit_espnet` recognizes it."""

import copy

import pytest
import torch
import yaml
from espnet2.asr.pit_espnet_model import PITLossWrapper
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.deploy.exports.stock import to_stock
from espnet_l0prune.deploy.reconstruct import Reconstructor
from espnet_l0prune.deploy.verify import difference_of, outputs, require_equal
from espnet_l0prune.networks.speakers import one_after_another, reordered
from espnet_l0prune.plugin.building import note_input_
from espnet_l0prune.plugin.trace import record
from espnet_l0prune.testing.models import arguments, disturb_
from espnet_l0prune.testing.updates import batch

SMALL = {"output_size": 16, "attention_heads": 4, "linear_units": 12}
ENCODER = {**SMALL, "num_inf": 2, "num_blocks": 2, "num_blocks_sd": 2}
MODEL = {"ctc_weight": 0.3, "num_inf": 2, "num_ref": 2}


def options(encoder: dict | None = None, **conf):
    args = arguments(encoder="l0_transformer_multispkr")
    args.encoder_conf = {**ENCODER, **(encoder or {})}
    args.ctc_conf = {**args.ctc_conf, "reduce": False}
    args.model, args.model_conf = "l0_distill_pit_espnet", {**MODEL, **conf}
    return args


def build(encoder: dict | None = None, **conf):
    args = options(encoder, **conf)
    torch.manual_seed(0)
    model = ASRTask.build_model(copy.deepcopy(args)).eval()
    note_input_(model, args)
    disturb_(model)
    return model, args


def batch_of_two(swapped: bool) -> dict[str, torch.Tensor]:
    """Random texts of two speakers; swapped, the second is the first."""
    found, more = batch(), batch(1)
    texts = [[x["text"], x["text_lengths"]] for x in (found, more)]
    first, second = texts[::-1] if swapped else texts
    found |= dict(zip(("text", "text_lengths"), first, strict=True))
    return found | dict(zip(("text_spk2", "text_spk2_lengths"), second, strict=True))


def test_speakers_are_ordered_as_espnet_orders_them():
    outputs, lengths = torch.randn(4, 3, 5, 2), torch.randint(1, 6, (4, 3))
    order = torch.stack([torch.randperm(3) for _ in range(4)])
    theirs, _ = PITLossWrapper.permutate(order, outputs, lengths)
    flat, frames = one_after_another(outputs, lengths)
    assert torch.equal(reordered(flat, order), theirs.flatten(0, 1))
    assert torch.equal(frames.view(4, 3), lengths)


@pytest.fixture
def pair(tmp_path):
    """A student that is as its teacher."""
    teacher, args = build({"dropout_rate": 0.0, "positional_dropout_rate": 0.0})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(teacher.state_dict(), tmp_path / "model.pth")
    files = {"teacher_config": "config.yaml", "teacher_model_file": "model.pth"}
    paths = {name: str(tmp_path / file) for name, file in files.items()}
    student, _ = build(args.encoder_conf, layer_weight=1.0, **paths)
    student.load_teacher_(torch.optim.SGD(student.parameters()))
    student.load_state_dict(teacher.state_dict())
    return student


@torch.no_grad()
def test_the_teacher_hears_the_speakers_in_the_students_order(pair):
    orders = []
    for swapped in (False, True):
        with record(pair) as trace:
            _, stats, _ = pair(**batch_of_two(swapped))
        orders.append(trace.speakers)
        assert len(trace.memory) == 6
        # each speaker has two blocks, and two are shared
        assert [len(trace.blocks[i]) for i in range(6)] == [3, 3, 3, 3, 6, 6]
        for name in ("loss_ctc_kl", "loss_att_kl", "loss_layer"):
            assert abs(float(stats[name])) < 1e-5
    assert torch.equal(orders[0], orders[1].flip(1))


@torch.no_grad()
@pytest.mark.parametrize("speaker", [0, 1])
def test_what_is_said_of_every_speaker_is_taught(pair, speaker):
    for parameter in pair.encoder.encoders_sd[speaker].parameters():
        parameter += torch.randn_like(parameter)
    _, stats, _ = pair(**batch_of_two(False))
    for name in ("loss_ctc_kl", "loss_att_kl", "loss_layer"):
        assert float(stats[name]) > 1e-4


def cut_blocks(names: list[str]):
    """A model that has lost these blocks, with its configuration."""
    model, args = build({"units": "all"})
    sites = model.encoder.sites()
    for site in sites:
        for kind, gate in site.gates.items():
            lost = kind == "blocks" and site.name in names
            gate.decide_(torch.full(gate.log_alpha.shape, not lost))
    cut_(model, sites, plan_of(sites))
    args.encoder_conf["structure"] = model.encoder.structure()
    return model, args


def test_plain_espnet_has_as_many_blocks_for_each_speaker():
    lost = ["encoders_sd.0.1", "encoders_sd.1.0", "encoders.0"]
    model, args = cut_blocks(lost)
    stock, options, tolerance = to_stock(model, args)
    conf = options.encoder_conf
    assert conf["num_blocks_sd"] == conf["num_blocks"] == 1
    require_equal(difference_of(outputs(model), outputs(stock)), tolerance)

    with pytest.raises(ValueError, match="lost unequal numbers of blocks for each"):
        to_stock(*cut_blocks(lost[1:]))


def test_there_is_no_graph_for_several_speakers(tmp_path, capsys):
    model, args = build({"units": []})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    command = ["export", "onnx", str(tmp_path), "--checkpoint", "model.pth"]
    assert main([*command, "--out", str(tmp_path / "onnx.zip")]) == 1
    assert "answers for several speakers, which no graph" in capsys.readouterr().err


def test_what_speakers_share_is_not_fitted_to_one_of_them():
    model, args = build()
    with pytest.raises(ValueError, match="would be fitted to what it says of the first"):
        Reconstructor(model, args, plan_of(model.encoder.sites()), 64)


@pytest.mark.parametrize("choice", [{"layer_map": "dynamic"}, {"layer_input": "teacher"}])
def test_blocks_of_several_speakers_are_compared_at_their_place(choice):
    with pytest.raises(ValueError, match="expected 'same' and 'student', as some blocks"):
        build(**choice)
