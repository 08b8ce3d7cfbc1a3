"""Every output head: trained with a teacher, cut, and decoded by ESPnet's own search."""

import pytest
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.testing.models import arguments, budget, disturb_
from espnet_l0prune.testing.updates import batch, train
from tests.plugin.networks import make

ATTENTION = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
LSTM = {"hidden_size": 8}
HEADS = {  # decoder, its options, the model's, and the distillation losses
    "ctc": ("transformer", ATTENTION, {"ctc_weight": 1.0}, {"ctc_kl"}),
    "attention": ("transformer", ATTENTION, {"ctc_weight": 0.0}, {"att_kl"}),
    "hybrid": ("transformer", ATTENTION, {"ctc_weight": 0.3}, {"ctc_kl", "att_kl"}),
    "transducer": ("transducer", LSTM, {"ctc_weight": 0.0}, {"transducer_kl"}),
    "transducer with ctc": (
        "transducer",
        LSTM,
        {"ctc_weight": 0.3},
        {"transducer_kl", "ctc_kl"},
    ),
    "hybrid, decoder pruned": (
        "l0_transformer",
        ATTENTION,
        {"ctc_weight": 0.3},
        {"ctc_kl", "att_kl"},
    ),
    "interctc with conditioning": (
        "transformer",
        ATTENTION,
        {"ctc_weight": 0.3, "interctc_weight": 0.3},
        {"ctc_kl", "att_kl"},
    ),
}
SCHEDULE = {
    "target": {"params": 0.3, "macs": 0.3},
    "warmup_steps": 2,
    "ramp_steps": 6,
    "hold_steps": 6,
    "seconds": 0.8,
    "tokens": 6,
}
RATES = {"multiplier_lr": 50.0, "lambda2": 50.0}


def configuration(head: str, **changes):
    decoder, decoder_conf, model_conf, _ = HEADS[head]
    args = arguments(decoder=decoder, model_conf=model_conf, **changes)
    args.decoder_conf = dict(decoder_conf)
    if decoder == "l0_transformer":
        gated = args.sparsity_scheduler is not None
        args.decoder_conf["units"] = "default" if gated else []
        args.sparsity_scheduler_conf = {**args.sparsity_scheduler_conf, "scope": "model"}
    args.joint_net_conf = {"joint_space_size": 8}
    args.encoder_conf |= {"linear_units": 200, "dropout_rate": 0.0}
    if head.startswith("interctc"):
        args.encoder_conf |= {
            "interctc_layer_idx": [1],
            "interctc_use_conditioning": True,
        }
    return args


def save(folder, args, net, name):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(net.state_dict(), folder / name)


def decode(config, weights, head, beam):
    """Text, tokens and score of the best hypotheses for some noise."""
    weight = HEADS[head][2]["ctc_weight"]
    search = Speech2Text(config, weights, beam_size=beam, ctc_weight=weight, nbest=2)
    found = []
    for i in range(3):
        speech = torch.randn(30 + 10 * i, 20, generator=torch.manual_seed(i))
        results = search(speech)
        if isinstance(results, tuple):  # beside those of intermediate CTC
            results, _ = results
        for text, _, ids, hypothesis in results:
            found.append((text, tuple(ids), pytest.approx(float(hypothesis.score), 1e-4)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_head_from_the_teacher_to_the_text(head, tmp_path):
    dense_args = configuration(head, encoder_conf={"units": []}, optim="adamw")
    torch.manual_seed(0)
    dense = ASRTask.build_model(dense_args)
    disturb_(dense)
    save(tmp_path / "dense", dense_args, dense, "model.pth")

    args = configuration(
        head,
        sparsity_scheduler="linear",
        sparsity_scheduler_conf=SCHEDULE,
        sparsity_constraint_conf=RATES,
        optim_conf={"gate_lr": 0.3},
    )
    args.model_conf |= {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    net = ASRTask.build_model(args)
    (optimizer,) = ASRTask.build_optimizers(args, net)
    missing = net.load_state_dict(dense.state_dict(), strict=False)
    assert all(key.endswith(".log_alpha") for key in missing.missing_keys)

    # equal to its teacher: nothing to learn from it
    _, stats, _ = net.eval()(**batch())
    losses = {f"loss_{name}" for name in HEADS[head][3]} | {"loss_layer"}
    found = {k for k in stats if k.endswith("_kl")} | {"loss_layer"}
    assert found == losses
    assert all(abs(float(stats[name])) < 1e-5 for name in losses)

    # through all phases; then it differs from its teacher in all that is compared
    history = train(net, optimizer, range(15))
    assert net.controller.phase == "frozen"
    assert all(history[-1][name] > 1e-4 for name in losses)
    for cost, target in SCHEDULE["target"].items():
        assert history[-1][f"sparsity_actual_{cost}"] >= target

    save(tmp_path / "pruned", args, net, "latest.pth")
    command = ["cut", str(tmp_path / "pruned"), "--out", str(tmp_path / "cut")]
    assert main(command) == 0
    masked = tmp_path / "pruned/config.yaml", tmp_path / "pruned/latest.pth"
    cut = tmp_path / "cut/config.yaml", tmp_path / "cut/model.pth"
    texts = set()
    for beam in (1, 5):
        one, two = (decode(*files, head, beam) for files in (masked, cut))
        assert one == two
        texts |= {text for text, *_ in one}
    assert len(texts) > 1  # not always the same, nor empty


def test_a_decoder_is_pruned_beside_a_stock_encoder(tmp_path, capsys):
    args = arguments(
        encoder="conformer",
        decoder="l0_transformer",
        decoder_conf={"linear_units": 99, "units": ["src_heads", "ffn_channels"]},
        sparsity_scheduler="linear",
        sparsity_scheduler_conf={**SCHEDULE, "target": 0.3, "scope": "decoder"},
        sparsity_constraint_conf=RATES,
        optim_conf={"gate_lr": 0.3},
    )
    args.encoder_conf.pop("units", None)
    net = ASRTask.build_model(args)
    (optimizer,) = ASRTask.build_optimizers(args, net)
    train(net, optimizer, range(15))
    save(tmp_path / "pruned", args, net, "latest.pth")
    command = ["cut", str(tmp_path / "pruned"), "--out", str(tmp_path / "cut")]
    assert main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "cut/decoder_structure.yaml").exists()
    assert not (tmp_path / "cut/structure.yaml").exists()


def test_soft_block_gates_decode_step_by_step_as_in_parallel():
    net = make("decoder", {"output_size": 16, "attention_heads": 4}, ["blocks"], 0)
    for block, alpha in zip(net.decoders, (-1.0, 0.3, 1.0, 100.0, 0.0, 0.5), strict=True):
        block.blocks_gate.log_alpha.data.fill_(alpha)
    memory = torch.randn(1, 7, 16).double()
    tokens = torch.tensor([[1, 5, 3, 2, 7]])
    lengths = torch.tensor([7]), torch.tensor([5])
    whole = net(memory, lengths[0], tokens, lengths[1])[0].log_softmax(-1)
    cache = None
    for i in range(1, 6):
        mask = torch.ones(1, i, i, dtype=torch.bool).tril()
        step, cache = net.forward_one_step(tokens[:, :i], mask, memory, cache=cache)
        torch.testing.assert_close(step[0], whole[0, i - 1])


def test_transducer_loss_is_that_of_all_alignments():
    """ESPnet's numba loss, by enumeration of the paths through a small lattice."""
    args = configuration("transducer", encoder_conf={"units": []}, optim="adamw")
    torch.manual_seed(0)
    net = ASRTask.build_model(args)
    logits = torch.randn(1, 3, 3, len(args.token_list))
    labels = torch.tensor([[4, 5]], dtype=torch.int32)
    log_p = logits.log_softmax(-1)[0]

    def total(t: int, u: int) -> torch.Tensor:
        """Log-probability of all that may follow node (t, u)."""
        if t == 2 and u == 2:
            return log_p[t, u, net.blank_id]
        ways = []
        if t < 2:
            ways.append(log_p[t, u, net.blank_id] + total(t + 1, u))
        if u < 2:
            ways.append(log_p[t, u, labels[0, u]] + total(t, u + 1))
        return torch.stack(ways).logsumexp(0)

    lengths = torch.tensor([3], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    loss = net.criterion_transducer(logits, labels, *lengths)
    assert float(loss) == pytest.approx(-float(total(0, 0)), rel=1e-5)


def test_the_controller_sees_each_head_of_a_model_in_scope():
    args = configuration("transducer with ctc")
    net = ASRTask.build_model(args)
    whole, encoder = budget(net, "model"), budget(net)
    parts = (net.decoder, net.joint_network, net.ctc)
    numel = sum(p.numel() for part in parts for p in part.parameters())
    assert whole.totals["params"] - encoder.totals["params"] == numel
