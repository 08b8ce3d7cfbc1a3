"""The task asr_transducer: its encoder, whole and by chunks, from adopt to the text."""

import argparse
import copy
import shlex

import pytest
import torch
import yaml
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.bin.asr_transducer_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet2.tasks.asr_transducer import ASRTransducerTask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_l0prune.cli import main
from espnet_l0prune.core.candidates import candidates_of
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.bench import encoder_macs
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.deploy.cut import cut_config
from espnet_l0prune.deploy.exports.stock import to_stock
from espnet_l0prune.deploy.probe import gated
from espnet_l0prune.deploy.source import read_source
from espnet_l0prune.deploy.verify import (
    difference_of,
    outputs,
    probe,
    require_equal,
    tolerance_of,
)
from espnet_l0prune.networks.transducer import encode_chunks
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.counting import make_budget
from espnet_l0prune.plugin.divergence import harms_of
from espnet_l0prune.plugin.experiment import load_model, read_weights
from espnet_l0prune.plugin.network import L0TransducerEncoder
from espnet_l0prune.plugin.options import make_goal
from espnet_l0prune.testing.models import TOKENS, disturb_
from espnet_l0prune.testing.runs import CONFIG, data_options, make_audio, make_data
from espnet_l0prune.testing.updates import batch
from tests.plugin.networks import (
    TRANSDUCERS,
    confs,
    copy_of,
    draw_plan,
    make,
    prunable,
    relative,
)

CHUNKS = (25, 50, 75)  # frames of features that are read at a time
DYNAMIC = {"dynamic_chunk_training": True, "short_chunk_size": 3}
SIZES = {"hidden_size": 16, "linear_size": 24, "conv_mod_kernel_size": 5, "heads": 4}
BODY = [  # every kind of block
    {"block_type": "conv1d", "kernel_size": 3, "output_size": 16},
    {"block_type": "conformer", **SIZES},
    {"block_type": "ebranchformer", **SIZES},
    {"block_type": "branchformer", **SIZES},
]
# without chunks, ESPnet's loss fails with frames that a convolution has taken away
KEEPING = [{**BODY[0], "kernel_size": 1}, *BODY[1:]]
VARIANTS = {
    "whole": {
        "body_conf": KEEPING,
        "input_conf": {"vgg_like": True, "conv_size": [6, 8]},
    },
    "in chunks": {
        "body_conf": BODY,
        "input_conf": {"conv_size": 8},
        "main_conf": DYNAMIC,
    },
    "other norms": {
        "body_conf": KEEPING,
        "main_conf": {
            "simplified_att_score": True,
            "norm_type": "rms_norm",
            "conv_mod_norm_type": "basic_norm",
            "blockdrop_rate": 0.2,
        },
    },
}
WEIGHTS = "valid.loss.ave.pth"
RUN = ("num_workers", "num_att_plot", "use_tensorboard", "use_matplotlib", "batch_type")
RATE = 16_000


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_open_gates_are_stock_bit_for_bit(variant, training):
    """In evaluation; and in warm-up training, from the same random state."""
    conf = VARIANTS[variant]
    torch.manual_seed(0)
    stock = Encoder(20, **copy.deepcopy(conf)).train(training)
    bare = L0TransducerEncoder(20, **conf, units=[])
    assert list(bare.state_dict()) == list(stock.state_dict())
    units = dict.fromkeys(kind for site in bare.sites() for kind in site.kinds)
    units.pop("blocks")
    ours = L0TransducerEncoder(20, **conf, units=list(units)).train(training)
    missing = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not missing.unexpected_keys
    gates = sum(len(site.gates) for site in ours.sites())
    assert len(missing.missing_keys) == gates > 0
    feats, lengths = probe(20, (150, 101))
    found = []
    for network in (stock, ours):
        torch.manual_seed(1)
        out, valid = network(feats.float(), lengths)
        out.square().sum().backward()
        found.append((out, valid))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    theirs = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, theirs[name].grad), name
    if not training and variant == "in chunks":
        for frames in CHUNKS:
            one = feats[:1].float(), frames
            assert torch.equal(encode_chunks(stock, *one), encode_chunks(ours, *one))


@pytest.mark.parametrize("kind", TRANSDUCERS)
@settings(suppress_health_check=list(HealthCheck), max_examples=10)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_masked_equals_cut_chunk_by_chunk(kind, data, seed):
    conf = data.draw(confs(kind))
    if conf["convs"] or data.draw(st.booleans()):  # in chunks these have to be causal
        conf["main_conf"] |= DYNAMIC
    network = make(kind, conf, prunable(kind, conf), seed)
    decide_(network.sites(), draw_plan(data, network))
    small = copy_of(network)
    cut_(small, small.sites(), plan_of(network.sites()))
    feats, _ = probe(20, (150,), seed)
    for frames in CHUNKS:
        masked = encode_chunks(network, feats, frames)
        assert relative(masked, encode_chunks(small, feats, frames)) <= 1e-10


def test_caches_are_as_wide_as_what_is_left():
    network = L0TransducerEncoder(20, BODY, main_conf=DYNAMIC, units="default")
    for site in network.sites():
        for kind, gate in site.gates.items():
            keep = torch.arange(len(gate.log_alpha)) < 3
            gate.decide_(keep if kind.endswith("_channels") else torch.ones_like(keep))
    cut_(network, network.sites(), plan_of(network.sites()))
    network.reset_cache(7, torch.device("cpu"))
    _, *caches = (block.cache for block in network.encoders.blocks)
    assert [cache[0].shape for cache in caches] == [(1, 7, 16)] * 3
    assert [cache[1].shape for cache in caches] == [(1, 3, 4)] * 3
    assert caches[1][2].shape == (1, 32, 4)  # in front of the merge


def test_options_are_not_written_into():
    """As ESPnet does, into its own default too: the next network would be as wide."""
    body = {**SIZES, "block_type": "conformer"}
    for size in (8, 16):
        conf = {"body_conf": [body | {"hidden_size": size}], "input_conf": {}}
        before = copy.deepcopy(conf)
        network = L0TransducerEncoder(20, **conf, units=[])
        assert conf == before
        assert network.embed.conv[0].out_channels == size
        bare = L0TransducerEncoder(20, conf["body_conf"], units=[])
        assert bare.embed.conv[0].out_channels == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": ["blocks"]}, "blocks hand on caches from chunk to chunk"),
        ({"units": ["width"]}, "nothing in this network has such units"),
        ({"random_features": 8}, "expected an encoder that is not a streaming one"),
        (
            {
                "units": ["cgmlp_channels"],
                "main_conf": {"conv_mod_norm_type": "rms_norm"},
                "body_conf": [{**BODY[-1], "conv_mod_norm_partial": 0.5}],
            },
            "with conv_mod_norm_partial, reads the first channels alone",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        L0TransducerEncoder(20, **{"body_conf": BODY, **change})


def test_a_word_leaves_out_what_cannot_be_pruned():
    main_conf = {"conv_mod_norm_type": "rms_norm"}
    body = [BODY[1], {**BODY[-1], "conv_mod_norm_partial": 0.5}]
    network = L0TransducerEncoder(20, body, main_conf=main_conf, units="default")
    kinds = {kind for site in network.gated_sites() for kind in site.gates}
    assert "cgmlp_channels" not in kinds
    assert {"heads", "conv_channels", "ffn_channels", "frontend_channels"} <= kinds


def options(variant: str = "whole", **changes):
    """Options of a small model that reads features, as the task's parser has them."""
    args = ASRTransducerTask.get_parser().parse_args(["--output_dir", "none"])
    found = {
        "token_list": TOKENS,
        "token_type": "char",
        "input_size": 20,
        "encoder_conf": VARIANTS[variant],
        "decoder_conf": {"embed_size": 8, "hidden_size": 8},
        "joint_network_conf": {"joint_space_size": 8},
        "model_conf": {"auxiliary_ctc_weight": 0.3, "auxiliary_lm_loss_weight": 0.2},
        "optim": "adamw",
        "optim_conf": {"lr": 1e-3},
        "batch_size": 4,
        "max_epoch": 2,
        "best_model_criterion": [["valid", "loss", "min"]],
        **{name: CONFIG[name] for name in RUN},
        **changes,
    }
    for name, value in copy.deepcopy(found).items():
        setattr(args, name, value)
    return args


def save_dense(folder, args) -> list:
    """Write an experiment with random weights, and return its files."""
    torch.manual_seed(0)
    model = build_model(args)
    disturb_(model.encoder)
    model.joint_network.lin_out.bias.data[0] -= 1  # of blank
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), folder / WEIGHTS)
    return [folder / name for name in ("config.yaml", WEIGHTS)]


def student_of(files, **changes):
    """A model that begins as its teacher."""
    teacher, args = load_model(*files)
    args = copy.deepcopy(args)
    args.encoder, args.model = "l0_transducer", "l0_distill"
    args.encoder_conf |= {"units": []}
    args.model_conf |= {"teacher_config": str(files[0]), "layer_weight": 1.0}
    args.model_conf |= {"teacher_model_file": str(files[1]), **changes}
    model = build_model(args)
    model.load_state_dict(teacher.state_dict())
    return model, teacher


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_espnets_model_with_a_teacher(variant, tmp_path):
    files = save_dense(tmp_path / "dense", options(variant))
    model, stock = student_of(files)
    assert isinstance(model, ESPnetASRTransducerModel)
    assert type(stock) is ESPnetASRTransducerModel
    assert type(stock.encoder) is Encoder

    def heard(net, training: bool = False) -> dict[str, float]:
        torch.manual_seed(1)
        loss, stats, _ = net.train(training)(**batch())
        if training:
            loss.backward()
        return {name: float(value) for name, value in stats.items() if value is not None}

    mine, same = heard(model), heard(stock)
    assert mine["loss"] == same["loss"] == mine["loss_task"]
    model.load_teacher_(torch.optim.SGD(model.parameters(), lr=0.1))
    names = {"loss_ctc_kl", "loss_transducer_kl", "loss_layer"}
    # where chunks are drawn, the teacher reads the student's
    for _ in range(3):
        found = heard(model)
        assert {x for x in found if x.endswith("_kl") or x == "loss_layer"} == names
        assert all(abs(found[x]) < 1e-5 for x in names)
    for parameter in model.encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    assert all(heard(model, training=True)[x] > 1e-3 for x in names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_closed_gates_do_is_seen_by_all_heads(variant, tmp_path):
    save_dense(tmp_path / "dense", options(variant))
    choice = Choice(units=["heads"])
    read = read_source(tmp_path / "dense", WEIGHTS, tmp_path / "none", choice)
    model, args = gated(*read, choice)
    parts = [one.whole for one in candidates_of(make_budget(model, make_goal(args)))]
    nothing, *harms = harms_of(model, [batch()], [{}, *parts])
    assert nothing.kls == {"transducer": 0.0, "ctc": 0.0}
    assert parts
    assert all(kl > 0 for harm in harms for kl in harm.kls.values())


def test_the_teacher_is_compared_where_the_student_is_trained(tmp_path):
    """Its blocks read what the student's do, and the CTC's divergence is by hand."""
    args = options("in chunks")
    args.model_conf["auxiliary_ctc_dropout_rate"] = 0.5
    model, _ = student_of(save_dense(tmp_path / "dense", args), layer_input="teacher")
    model.load_teacher_(torch.optim.SGD(model.parameters(), lr=0.1))
    assert float(model.eval()(**batch())[1]["loss_layer"]) < 1e-9
    with torch.no_grad():
        model.ctc_lin.weight.normal_()
    torch.manual_seed(2)
    stats = model(**batch())[1]
    torch.manual_seed(2)
    speech, lengths = batch()["speech"], batch()["speech_lengths"]
    with torch.no_grad():
        out, valid = model.encode(speech, lengths)
        mine = model.ctc_lin(out).log_softmax(-1)
        theirs = model.teacher.model.ctc_lin(out).log_softmax(-1)
    kl = (theirs.exp() * (theirs - mine)).sum(-1)
    total = sum(float(kl[i, :n].sum()) for i, n in enumerate(valid)) / len(kl)
    assert float(stats["loss_ctc_kl"]) == pytest.approx(total, rel=1e-3)


def test_a_plain_training_of_the_task_is_left_as_it_was():
    args = options()
    torch.manual_seed(0)
    model = ASRTransducerTask.build_model(args)
    assert type(model) is ESPnetASRTransducerModel
    assert type(model.encoder) is Encoder
    assert not {"model", "encoder"} & vars(args).keys()
    named = options(model="espnet", encoder="transducer")
    assert type(ASRTransducerTask.build_model(named).encoder) is Encoder


def test_each_task_has_the_encoders_that_it_can_build():
    own, asr = (
        {choices.name: choices.classes for choices in task.class_choices_list}
        for task in (ASRTransducerTask, ASRTask)
    )
    assert {*own["encoder"]} == {"transducer", "l0_transducer"}
    assert {*own["model"]} == {"espnet", "l0_distill"}
    assert {*own["decoder"]} == {"mega", "rnn", "rwkv", "stateless"}
    assert "l0_transducer" not in asr["encoder"]


def test_costs_are_counted_and_short_audio_is_refused():
    args = options("other norms")
    args.encoder, args.encoder_conf["units"] = "l0_transducer", "default"
    args.model = "l0_distill"
    model = build_model(args).eval()
    budget = make_budget(model, Goal(seconds=2.0))
    assert budget.totals["macs"] == encoder_macs(model, 2.0, 100)
    make_budget(model, Goal(scope="model", seconds=2.0))
    with pytest.raises(ValueError, match=r"seconds is 0\.05: .* too short"):
        make_budget(model, Goal(seconds=0.05))


def test_a_cut_is_verified_in_chunks_too():
    args = options("in chunks", encoder="l0_transducer", model="l0_distill")
    args.encoder_conf["units"] = []
    model = build_model(args)
    found = outputs(model)
    assert {*found[torch.float64]} == {"encoder", "encoder in chunks"}
    assert difference_of(found, outputs(model)).float64 == 0
    with torch.no_grad():
        model.encoder.encoders.norm_blocks.bias += 1
    assert difference_of(found, outputs(model)).float64 > 0.01


def test_no_graph_is_written(tmp_path, capsys):
    args = options(encoder="l0_transducer", model="l0_distill")
    args.encoder_conf["units"] = []
    save_dense(tmp_path / "dense", args)
    command = ["export", "onnx", str(tmp_path / "dense"), "--checkpoint", WEIGHTS]
    assert main([*command, "--out", str(tmp_path / "onnx.zip")]) == 1
    assert "of which no graph is written here" in capsys.readouterr().err


def test_a_pruned_loss_is_refused(tmp_path, capsys):
    args = options()
    args.model_conf["use_k2_pruned_loss"] = True
    save_dense(tmp_path / "dense", args)
    assert main(["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]) == 1
    assert "use_k2_pruned_loss is True; pruning expects" in capsys.readouterr().err


def cut_model(variant: str, seed: int, narrow: str = "branchformer"):
    """A cut model of random structure; cgMLPs have lost channels in one kind of block."""
    args = options(variant, encoder="l0_transducer", model="l0_distill")
    bare = L0TransducerEncoder(20, **VARIANTS[variant], units=[])
    kinds = dict.fromkeys(kind for site in bare.sites() for kind in site.kinds)
    args.encoder_conf["units"] = [kind for kind in kinds if kind != "blocks"]
    torch.manual_seed(seed)
    model = build_model(args).eval()
    disturb_(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for site in model.encoder.sites():
        for kind, gate in site.gates.items():
            chance = torch.rand(gate.log_alpha.shape, generator=generator)
            keep = chance < (0.5 if len(chance) > 1 else 0.7)
            if site.protected(kind) is not None:
                keep[0] = True
            block = type(site.block.module).__name__ if kind[:5] == "cgmlp" else ""
            whole = kind == "cgmlp_channels" and block.lower() != narrow
            gate.decide_(keep | torch.tensor(whole))
    masked, tolerance = outputs(model), tolerance_of(model.encoder.sites())
    cut_(model, model.encoder.sites(), plan_of(model.encoder.sites()))
    require_equal(difference_of(masked, outputs(model)), tolerance)
    return model, argparse.Namespace(**cut_config(vars(args), model))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_espnet_can_say_most_of_it(variant, seed):
    model, args = cut_model(variant, seed)
    stock, found, tolerance = to_stock(model, args)
    require_equal(difference_of(outputs(model), outputs(stock)), tolerance)
    assert type(stock) is ESPnetASRTransducerModel
    assert type(stock.encoder) is Encoder
    assert not {"model", "encoder"} & vars(found).keys()
    convs = [m for m in stock.encoder.embed.conv if isinstance(m, torch.nn.Conv2d)]
    mine = [m for m in model.encoder.embed.conv if isinstance(m, torch.nn.Conv2d)]
    assert max(m.out_channels for m in convs) == max(m.out_channels for m in mine)
    ASRTransducerTask.build_model(found).load_state_dict(stock.state_dict())


def test_each_block_has_its_own_width_in_plain_espnet():
    model, args = cut_model("whole", 2)
    _, found, _ = to_stock(model, args)
    _, conformer, merged, last = found.encoder_conf["body_conf"]
    left = model.encoder.structure()
    channels = [
        left[f"encoders.blocks.1.{name}"]["ffn_channels"]
        for name in ("feed_forward_macaron", "feed_forward")
    ]
    assert conformer["linear_size"] == max(1, *channels) < SIZES["linear_size"]
    assert merged["linear_size"] == SIZES["linear_size"]
    cgmlp = left["encoders.blocks.3.conv_mod"]["cgmlp_channels"]
    assert last["linear_size"] == 2 * cgmlp < SIZES["linear_size"]


def test_plain_espnet_has_one_width_for_both():
    with pytest.raises(ValueError, match="that are narrower than the FFNs"):
        to_stock(*cut_model("whole", 2, narrow="ebranchformer"))


def decoded(variant: str, config, weights) -> tuple[list, torch.Tensor]:
    """What ESPnet's own decoding makes of audio, as a whole, and as one speaks: texts,
    and their scores."""
    speech = 0.1 * torch.randn(2 * RATE, generator=torch.manual_seed(3))
    files = str(config), str(weights)
    whole = Speech2Text(*files, beam_size=2)
    found = whole.hypotheses_to_results(whole(speech))[:1]
    if variant == "in chunks":
        search = Speech2Text(*files, beam_size=2, streaming=True, left_context=8)
        parts = speech.split(int(0.64 * RATE))
        for i, part in enumerate(parts):
            said = search.streaming_decode(part, is_final=i == len(parts) - 1)
            found += search.hypotheses_to_results(said)[:1]
    texts = [text for text, *_ in found]
    return texts, torch.tensor([float(hypothesis.score) for *_, hypothesis in found])


def require_same(one, other) -> None:
    assert one[0] == other[0]
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_resumes_ends_as_one_that_never_stopped(tmp_path):
    """With what it draws: chunks, and blocks that are dropped."""
    args = options("in chunks")
    args.encoder_conf["main_conf"] |= {"blockdrop_rate": 0.5}
    make_data(tmp_path)
    dense, out = tmp_path / "dense", tmp_path / "l0"
    save_dense(dense, args)
    more = ["--no_data", "--epochs", "6"]  # the gates are fixed in the fifth
    assert main(["adopt", str(dense), "--out", str(out), *more]) == 0
    train = ["--config", str(out / "prune.yaml"), *data_options(tmp_path)]
    train += ["--resume", "true", "--output_dir"]

    def run(folder: str, epochs: int) -> None:
        more = [str(tmp_path / folder), "--max_epoch", str(epochs)]
        ASRTransducerTask.main(cmd=[*train, *more])

    run("one", 6)
    run("two", 5)
    (tmp_path / "two/checkpoint.pth").write_bytes(b"")  # so that it resumes from epoch 4
    run("two", 6)
    one, two = (read_weights(tmp_path / name / "6epoch.pth") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["whole", "in chunks"])
def test_the_whole_line_from_adopt_to_the_text(variant, tmp_path, capsys):
    frontend = {
        "input_size": None,
        "frontend_conf": {"fs": RATE, "n_fft": 256, "hop_length": 128, "n_mels": 20},
    }
    args = options(variant, **frontend, **make_audio(tmp_path, RATE))
    args.normalize = "utterance_mvn" if variant == "whole" else None
    dense, out = tmp_path / "dense", tmp_path / "l0"
    save_dense(dense, args)
    more = ["--params", "0.3", "--macs", "0.3", "--epochs", "8", "--finetune_epochs", "2"]
    if variant == "whole":  # so that plain ESPnet can say it
        more += ["--units", "heads,ffn_channels,conv_channels,frontend_channels"]
    assert main(["adopt", str(dense), "--out", str(out), *more]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out.split("Next:\n")[1].splitlines()
    prune, cut, finetune = map(shlex.split, printed)
    assert prune[2] == finetune[2] == "espnet2.bin.asr_transducer_train"
    ASRTransducerTask.main(cmd=prune[3:])
    assert main([*cut[1:], "--reconstruct", "8"]) == 0, capsys.readouterr().err
    cut_files = out / "cut/config.yaml", out / "cut/model.pth"
    assert main([*cut[1:], "--force"]) == 0, capsys.readouterr().err
    masked = decoded(variant, out / "pruned/config.yaml", out / "pruned/latest.pth")
    require_same(masked, decoded(variant, *cut_files))

    ASRTransducerTask.main(cmd=finetune[3:])
    trained = [out / "finetuned" / name for name in ("config.yaml", WEIGHTS)]
    for form in ("plugin", "stock") if variant == "whole" else ("plugin",):
        archive = tmp_path / f"{form}.zip"
        command = ["export", form, str(out / "finetuned"), "--out", str(archive)]
        assert main(command) == 0, capsys.readouterr().err
        files = unpack_model(archive, tmp_path / form)
        require_same(decoded(variant, *files), decoded(variant, *trained))
    card = (tmp_path / "plugin/README.md").read_text()
    assert "from espnet2.bin.asr_transducer_inference import Speech2Text" in card
    assert "speech2text.hypotheses_to_results(speech2text(speech))[0]" in card
    for command in (["inspect"], ["bench", "--seconds", "1"]):
        assert main([command[0], str(out / "finetuned"), *command[1:]]) == 0
