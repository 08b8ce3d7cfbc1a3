"""Every task and model of ESPnet's that has a teacher: from adopt to the decoded text."""

import copy
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from espnet2.bin import (
    asr_inference,
    asr_inference_maskctc,
    mt_inference,
    slu_inference,
    st_inference,
)
from espnet2.tasks.asr import ASRTask
from espnet2.tasks.mt import MTTask
from espnet2.tasks.slu import SLUTask
from espnet2.tasks.st import STTask
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

from espnet_l0prune.cli import main
from espnet_l0prune.core.candidates import candidates_of
from espnet_l0prune.core.draws import same_draws
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.deploy.probe import gated
from espnet_l0prune.deploy.source import read_source
from espnet_l0prune.networks.espnet_modules import (
    ConformerEncoder,
    EBranchformerEncoder,
    MultiSpeakerTransformerEncoder,
)
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.counting import call_shapes, make_budget, run
from espnet_l0prune.plugin.divergence import harms_of
from espnet_l0prune.plugin.experiment import check_sizes, load_model
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.options import make_goal
from espnet_l0prune.testing.models import ENCODER, TOKENS, disturb_
from espnet_l0prune.testing.runs import CONFIG, make_data
from espnet_l0prune.testing.updates import batch

WEIGHTS = "valid.loss.ave.pth"
BERT, MBART = "bert", "mbart"  # folders below the current one
DECODER = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
BLOCK = {**ENCODER, "num_blocks": 1}
E_BRANCHFORMER = {  # as in asr2, where it reads two units at a time
    "output_size": 16,
    "attention_heads": 4,
    "cgmlp_linear_units": 24,
    "cgmlp_conv_kernel": 3,
    "linear_units": 12,
    "num_blocks": 2,
    "use_ffn": True,
    "macaron_ffn": True,
    "input_layer": "conv1d2",
    "dropout_rate": 0.0,
}
SPEAKERS = {  # each has a block of its own, before a shared one
    "output_size": 16,
    "attention_heads": 4,
    "linear_units": 12,
    "num_blocks": 1,
    "num_blocks_sd": 1,
    "num_inf": 2,
    "dropout_rate": 0.0,
}
SOURCE = {"src_token_list": TOKENS, "src_token_type": "char"}
ASR = {"extra_asr_decoder": "transformer", "extra_asr_decoder_conf": DECODER}
NO_BLEU = {"report_bleu": False}  # which needs a package
TWO_CTCS = {"asr_weight": 0.3, "mtlalpha": 0.5, "st_mtlalpha": 0.3, **NO_BLEU}
TEXT = {"frontend": "embed", "frontend_conf": {"embed_dim": 16}, "input_size": None}
TASKS = {"asr": ASRTask, "mt": MTTask, "slu": SLUTask, "st": STTask}
# The task, what differs from a small ASR model, our name of the model, and the losses
KINDS = {
    "st": (
        "st",
        {**SOURCE, **ASR, "model_conf": TWO_CTCS},
        "l0_distill",
        {"ctc_kl", "st_ctc_kl", "att_kl", "layer"},
    ),
    "st with a second encoder": (
        "st",
        {
            **SOURCE,
            "hier_encoder": "conformer",
            "hier_encoder_conf": {**BLOCK, "input_layer": None},
            "model_conf": {**TWO_CTCS, "mtlalpha": 1.0},
        },
        "l0_distill",
        {"ctc_kl", "st_ctc_kl", "att_kl", "layer"},
    ),
    "st with two decoders": (
        "st",
        {
            **SOURCE,
            "extra_asr_decoder": "transformer_md",
            "extra_asr_decoder_conf": {**DECODER, "use_speech_attn": False},
            "decoder": "transformer_md",
            "md_encoder": "conformer",
            "md_encoder_conf": {**BLOCK, "input_layer": "linear"},
            "model_conf": {"asr_weight": 0.3, "mtlalpha": 0.5, **NO_BLEU},
        },
        "l0_distill",
        {"ctc_kl", "layer"},
    ),
    "st by a transducer": (
        "st",
        {
            **SOURCE,
            "decoder": "transducer",
            "decoder_conf": {"hidden_size": 8},
            "st_joint_net_conf": {"joint_space_size": 8},
        },
        "l0_distill",
        {"transducer_kl", "layer"},
    ),
    "mt": (
        "mt",
        {**SOURCE, **TEXT, "model_conf": NO_BLEU},
        "l0_distill",
        {"att_kl", "layer"},
    ),
    "discrete units": (
        "mt",
        {
            **SOURCE,
            **TEXT,
            "encoder": "e_branchformer",
            "encoder_conf": E_BRANCHFORMER,
            "model": "discrete_asr",
            "model_conf": {"ctc_weight": 0.3},
        },
        "l0_distill_discrete_asr",
        {"ctc_kl", "att_kl", "layer"},
    ),
    "Mask-CTC": (
        "asr",
        {
            "model": "maskctc",
            "decoder": "mlm",
            "model_conf": {"ctc_weight": 0.3},
        },
        "l0_distill_maskctc",
        {"ctc_kl", "att_kl", "layer"},
    ),
    "several speakers": (
        "asr",
        {
            "encoder": "transformer_multispkr",
            "encoder_conf": SPEAKERS,
            "model": "pit_espnet",
            "model_conf": {"ctc_weight": 0.3, "num_inf": 2, "num_ref": 2},
            "ctc_conf": {"reduce": False},
            "preprocessor": "multi",
            "preprocessor_conf": {"text_name": ["text", "text_spk2"]},
        },
        "l0_distill_pit_espnet",
        {"ctc_kl", "att_kl", "layer"},
    ),
    "a postencoder": (
        "asr",
        {
            "postencoder": "length_adaptor",
            "postencoder_conf": {"length_adaptor_n_layers": 1},
            "model_conf": {"ctc_weight": 0.3},
        },
        "l0_distill",
        {"ctc_kl", "att_kl", "layer"},
    ),
    "BERT after the encoder": (
        "asr",
        {
            "postencoder": "hugging_face_transformers",
            "postencoder_conf": {"model_name_or_path": BERT},
            "model_conf": {"ctc_weight": 0.3},
        },
        "l0_distill",
        {"ctc_kl", "att_kl", "layer"},
    ),
    "mBART after the encoder, and as decoder": (
        "asr",
        {
            "postencoder": "hugging_face_transformers",
            "postencoder_conf": {"model_name_or_path": MBART, "lang_token_id": 5},
            "decoder": "hugging_face_transformers",
            "decoder_conf": {"model_name_or_path": MBART},
            "model_conf": {"ctc_weight": 0.3, "lang_token_id": 5},
        },
        "l0_distill",
        {"ctc_kl", "att_kl", "layer"},
    ),
    "BERT beside it, and deliberation": (
        "slu",
        {
            "transcript_token_list": TOKENS,
            "postdecoder": "hugging_face_transformers",
            "postdecoder_conf": {"model_name_or_path": BERT, "output_size": 16},
            "deliberationencoder": "conformer",
            "deliberationencoder_conf": {**BLOCK, "input_layer": "linear"},
            "model_conf": {"ctc_weight": 0.0},
        },
        "l0_distill",
        {"att_kl", "layer"},
    ),
}
STOCK = ConformerEncoder, EBranchformerEncoder, MultiSpeakerTransformerEncoder
RUN = ("num_workers", "num_att_plot", "use_tensorboard", "use_matplotlib", "batch_type")


@pytest.fixture(autouse=True, scope="module")
def _published(tmp_path_factory):
    """A BERT and an mBART with random weights, as Hugging Face's package saves them."""
    folder = tmp_path_factory.mktemp("hub")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 8, "vocab_size": len(words)}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, **more))
    for part in (tokenizer, bert):
        part.save_pretrained(folder / BERT)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 12}
    more = {f"{x}_ffn_dim": 8 for x in ("encoder", "decoder")}
    more |= {f"{x}_attention_heads": 2 for x in ("encoder", "decoder")}
    config = transformers.MBartConfig(**sizes, **more)
    transformers.MBartForConditionalGeneration(config).save_pretrained(folder / MBART)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def configuration(kind: str, **changes):
    task, more, _, _ = KINDS[kind]
    args = TASKS[task].get_parser().parse_args(["--output_dir", "none"])
    options = {
        "token_list": TOKENS,
        "token_type": "char",
        "input_size": 20,
        "encoder": "conformer",
        "encoder_conf": {**ENCODER, "dropout_rate": 0.0},
        "decoder": "transformer",
        "decoder_conf": DECODER,
        "optim": "adamw",
        "optim_conf": {"lr": 1e-3},
        "batch_size": 4,
        "max_epoch": 2,
        "best_model_criterion": [["valid", "loss", "min"]],
        **{name: CONFIG[name] for name in RUN},
        **more,
        **changes,
    }
    if task != "mt":
        options["normalize"] = "utterance_mvn"
    elif options["encoder"] == "conformer":
        options["encoder_conf"]["input_layer"] = "linear"
    for name, value in copy.deepcopy(options).items():
        setattr(args, name, value)
    return args


def save_dense(folder, kind: str, **changes) -> None:
    """Write a dense experiment with random weights."""
    args = configuration(kind, **changes)
    torch.manual_seed(0)
    model = build_model(args)
    disturb_(model)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml_no_alias_safe_dump(vars(args)))
    torch.save(model.state_dict(), folder / WEIGHTS)


def batch_of(kind: str) -> dict[str, torch.Tensor]:
    found = batch()
    if kind == "several speakers":
        found["text_spk2"] = found["text"].flip(1)
        found["text_spk2_lengths"] = found["text_lengths"]
    if KINDS[kind][0] == "asr":
        return found
    if KINDS[kind][0] == "slu":
        found["transcript"] = found["text"].flip(1)
        found["transcript_lengths"] = found["text_lengths"]
        return found
    generator = torch.Generator().manual_seed(1)
    found["src_text"] = torch.randint(2, 10, (3, 19), generator=generator)
    found["src_text_lengths"] = torch.tensor([19, 15, 17])
    if KINDS[kind][0] == "mt":
        del found["speech"], found["speech_lengths"]
    return found


def losses(model, kind: str, training: bool = False) -> dict[str, float]:
    torch.manual_seed(1)
    np.random.seed(1)  # Mask-CTC draws its masks by numpy
    loss, stats, _ = model.train(training)(**batch_of(kind))
    if training:
        loss.backward()
    return {name: float(value) for name, value in stats.items() if value is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_espnets_model_with_a_teacher(kind, tmp_path):
    task, _, name, expected = KINDS[kind]
    save_dense(tmp_path / "dense", kind)
    files = [tmp_path / "dense" / name for name in ("config.yaml", WEIGHTS)]
    stock, args = load_model(*files)
    args = copy.deepcopy(args)
    args.encoder, args.model = f"l0_{args.encoder}", name
    args.encoder_conf["units"] = []
    args.model_conf["layer_weight"] = 1.0
    for option, file in zip(("teacher_config", "teacher_model_file"), files, strict=True):
        args.model_conf[option] = str(file)
    with torch.random.fork_rng():
        model = TASKS[task].build_model(args)
    assert args.model == name
    assert isinstance(model, L0Distilled)
    assert isinstance(model, type(stock))
    model.load_state_dict(stock.state_dict())

    same = losses(stock, kind)
    mine = losses(model, kind)
    assert mine["loss"] == same["loss"] == mine["loss_task"]

    model.load_teacher_(torch.optim.SGD(model.parameters(), lr=0.1))
    mine = losses(model, kind)
    names = {f"loss_{loss}" for loss in expected}
    assert {x for x in mine if x.endswith("_kl") or x == "loss_layer"} == names
    assert all(abs(mine[x]) < 1e-5 for x in names)
    for parameter in model.encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    mine = losses(model, kind, training=True)
    assert all(mine[x] > 1e-3 for x in names)


@pytest.mark.parametrize("kind", KINDS)
def test_what_closed_gates_do_is_seen_by_all_heads(kind, tmp_path):
    save_dense(tmp_path / "dense", kind)
    choice = Choice(units=["ffn_channels"])
    read = read_source(tmp_path / "dense", WEIGHTS, tmp_path / "none", choice)
    model, args = gated(*read, choice)
    parts = [one.whole for one in candidates_of(make_budget(model, make_goal(args)))]
    nothing, *harms = harms_of(model, [batch_of(kind)], [{}, *parts])
    heads = {name.removesuffix("_kl") for name in KINDS[kind][3] - {"layer"}}
    if kind == "st with two decoders":
        heads |= {"att"}  # which is not distilled, as it reads another decoder's states
    assert nothing.kls == dict.fromkeys(heads, 0.0)
    with same_draws(), torch.no_grad():
        assert nothing.loss == float(model(**batch_of(kind))[1]["loss_task"])
    assert len(parts) >= 2
    assert all(harm.kls.keys() == heads for harm in harms)
    assert all(max(harm.kls[head] for harm in harms) > 0 for head in heads)


def search_of(kind: str):
    """ESPnet's own decoding of a kind, and what it decodes."""
    speech = [torch.randn(40 + 9 * i, 20, generator=torch.manual_seed(i)) for i in (0, 1)]
    if kind == "Mask-CTC":
        return asr_inference_maskctc.Speech2Text, {}, "asr", speech
    options = {"beam_size": 2, "ctc_weight": 0.3 if "ctc_kl" in KINDS[kind][3] else 0.0}
    if kind == "several speakers":
        options["multi_asr"] = True
    if kind.startswith("mBART"):
        options["hugging_face_decoder"] = True
    if kind == "st by a transducer":
        options["transducer_conf"] = {"search_type": "default"}
    if KINDS[kind][0] == "st":
        return st_inference.Speech2Text, options, "st", speech
    if KINDS[kind][0] == "slu":
        return slu_inference.Speech2Understand, options, "slu", speech
    if KINDS[kind][0] == "mt":
        tokens = [torch.arange(2, 10).repeat(2 + i) for i in (0, 1)]
        return mt_inference.Text2Text, options, "mt", tokens
    return asr_inference.Speech2Text, options, "asr", speech


def decode(kind: str, config, weights) -> list:
    if kind == "st with two decoders":
        return []  # ESPnet's own search fails with what its own loss asks for
    search, options, name, inputs = search_of(kind)
    files = {f"{name}_train_config": str(config), f"{name}_model_file": str(weights)}
    found = search(**files, **options)
    more = (torch.tensor([2, 3, 4]),) if name == "slu" else ()  # a transcript
    if kind == "several speakers":
        return [[said[0][:3] for said in found(one)] for one in inputs]
    return [found(one, *more)[0][:3] for one in inputs]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_line_from_adopt_to_the_text(kind, tmp_path, monkeypatch, capsys):
    for name in (BERT, MBART):
        (tmp_path / name).symlink_to(Path(name).resolve())
    monkeypatch.chdir(tmp_path)
    task = KINDS[kind][0]
    (tmp_path / "data").mkdir()
    make_data(tmp_path / "data")
    data = [] if task == "mt" else [["data/feats", "speech", "npy"]]
    data.append(["data/text", "text", "text"])
    if kind == "several speakers":
        data.append(["data/text", "text_spk2", "text"])
    if task in ("mt", "st"):
        lines = (tmp_path / "data/text").read_text().splitlines()
        longer = [f"{line}{line.split()[1] * 3}\n" for line in lines]
        (tmp_path / "data/longer").write_text("".join(longer))
        data.append(["data/longer", "src_text", "text"])
    if task == "slu":
        data.append(["data/text", "transcript", "text"])
    options = {}
    for part in ("train", "valid"):
        options[f"{part}_data_path_and_name_and_type"] = data
        options[f"{part}_shape_file"] = ["data/shape"]
    save_dense(tmp_path / "dense", kind, **options)
    more = ["--params", "0.3", "--macs", "0.3", "--epochs", "8", "--finetune_epochs", "2"]
    more += ["--set", "encoder_conf.uniform=true"]  # so that plain ESPnet can say it
    assert main(["adopt", "dense", "--out", "l0", *more]) == 0, capsys.readouterr().err
    prune = yaml.safe_load((tmp_path / "l0/prune.yaml").read_text("utf-8"))
    assert prune["model"] == KINDS[kind][2]

    printed = [
        shlex.split(line)
        for line in capsys.readouterr().out.splitlines()
        if "_train " in line
    ]
    trains = [words[words.index("--resume") :] for words in printed]
    TASKS[task].main(cmd=trains[0])
    assert main(["cut", "l0/pruned", "--out", "l0/cut"]) == 0, capsys.readouterr().err
    last = tmp_path / "l0/pruned/latest.pth"
    masked = decode(kind, tmp_path / "l0/pruned/config.yaml", last)
    assert masked == decode(kind, "l0/cut/config.yaml", "l0/cut/model.pth")

    TASKS[task].main(cmd=trains[1])
    trained = [f"l0/finetuned/{name}" for name in ("config.yaml", WEIGHTS)]
    # plain ESPnet builds no transducer where warprnnt_pytorch is missing
    for form in ("plugin",) if "transducer" in kind else ("plugin", "stock"):
        command = ["export", form, "l0/finetuned", "--out", f"{form}.zip"]
        assert main(command) == 0, capsys.readouterr().err
        files = unpack_model(tmp_path / f"{form}.zip", tmp_path / form)
        model, args = load_model(*files)
        assert (type(model.encoder) in STOCK) == (form == "stock")
        ours = getattr(args, "model", None) == KINDS[kind][2]
        assert ours == (form == "plugin")
        assert decode(kind, *files) == decode(kind, *trained)


def test_two_decoders_that_espnets_loss_cannot_take_are_refused(tmp_path, capsys):
    save_dense(tmp_path / "dense", "st with two decoders")
    file = tmp_path / "dense/config.yaml"
    first = "extra_asr_decoder: transformer"
    file.write_text(file.read_text().replace(f"{first}_md", first))
    assert main(["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]) == 1
    message = capsys.readouterr().err
    assert "extra_asr_decoder is transformer; pruning expects" in message
    assert "transformer_md, as ESPnet's loss of such a model fails" in message


def pair(folder, kind: str, dense: dict | None = None, **changes):
    """A model with changes, and a teacher with others, which has other weights too."""
    save_dense(folder / "dense", kind, **(dense or {}))
    files = [folder / "dense" / name for name in ("config.yaml", WEIGHTS)]
    args = configuration(kind, **changes)
    args.encoder, args.model = f"l0_{args.encoder}", KINDS[kind][2]
    args.encoder_conf |= {"units": []}
    args.model_conf = {**args.model_conf, "layer_weight": 1.0}
    for option, file in zip(("teacher_config", "teacher_model_file"), files, strict=True):
        args.model_conf[option] = str(file)
    torch.manual_seed(1)
    model = build_model(args)
    model.load_teacher_(torch.optim.SGD(model.parameters(), lr=0.1))
    return model


def test_a_teacher_without_intermediate_ctc_teaches_the_rest(tmp_path):
    encoder_conf = {**ENCODER, "interctc_layer_idx": [1]}
    changes = {"encoder_conf": encoder_conf, "postencoder": None}
    changes["model_conf"] = {"ctc_weight": 0.3, "interctc_weight": 0.3}
    found = losses(pair(tmp_path, "Mask-CTC", **changes), "Mask-CTC", training=True)
    assert found["loss_ctc_kl"] > 0


def test_mask_ctc_learns_masked_tokens_alone(tmp_path):
    """As many nats as the masked positions have, of a batch, and no others."""
    model = pair(tmp_path, "Mask-CTC").eval()
    data, calls = batch_of("Mask-CTC"), []
    hooks = [
        net.decoder.register_forward_hook(lambda _, args, out: calls.append((args, out)))
        for net in (model, model.teacher.model)
    ]
    np.random.seed(1)
    _, stats, _ = model(**data)
    for hook in hooks:
        hook.remove()
    (args, (mine, _)), (_, (theirs, _)) = calls
    masked = args[2] == model.mask_token
    assert 0 < int(masked.sum()) < int(data["text_lengths"].sum())
    p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
    total = float((p.exp() * (p - q)).sum(-1)[masked].sum()) / len(mine)
    assert float(stats["loss_att_kl"]) == pytest.approx(total, rel=1e-4)


def test_translation_of_text_does_not_hide_that_of_speech(tmp_path):
    """In st, `mt_weight` lets the decoder translate the text first, then the speech."""
    mbart = {"model_name_or_path": MBART}
    changes = {
        "decoder": "hugging_face_transformers",
        "decoder_conf": mbart,
        "extra_mt_encoder": "hugging_face_transformers",
        "extra_mt_encoder_conf": mbart,
        "model_conf": {**TWO_CTCS, "mt_weight": 0.3},
    }
    model = pair(tmp_path, "st", changes, **changes)
    assert losses(model, "st", training=True)["loss_att_kl"] > 0


def test_another_source_language_is_refused(tmp_path):
    other = [*TOKENS[:2], *TOKENS[2:-1][::-1], TOKENS[-1]]
    for kind in ("st", "discrete units"):
        with pytest.raises(ValueError, match="another src_token_list: first different"):
            pair(tmp_path / kind, kind, src_token_list=other)


def test_a_front_end_may_join_tokens(tmp_path, capsys):
    """It takes a multiple of them, which 10 seconds are not."""
    options = {
        "frontend": "patch",
        "frontend_conf": {"embed_dim": 16, "token_per_frame": 8},
        "model_conf": {"patch_size": 8, **NO_BLEU},
    }
    save_dense(tmp_path / "dense", "mt", **options)
    assert main(["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]) == 0
    assert main(["bench", str(tmp_path / "dense"), "--checkpoint", WEIGHTS]) == 0


def test_a_transducer_that_is_not_used_is_not_taught(tmp_path):
    kind = "st by a transducer"
    model_conf = {"st_mtlalpha": 1.0, **NO_BLEU}
    changes = {"model_conf": model_conf}
    found = losses(pair(tmp_path, kind, changes, **changes), kind, training=True)
    assert "loss_transducer_kl" not in found


def test_its_models_can_be_pickled_and_are_left_as_they_were(tmp_path):
    model = pair(tmp_path, "st")
    losses(model, "st")
    assert "encode" not in vars(model)
    assert "encode" not in vars(model.teacher.model)
    model.teacher = None
    assert type(pickle.loads(pickle.dumps(model))) is type(model)


def test_a_ctc_before_a_length_adaptor_is_counted_at_its_own_rate(tmp_path):
    options = {
        "postencoder": "length_adaptor",
        "postencoder_conf": {"length_adaptor_n_layers": 1, "return_int_enc": True},
    }
    model = build_model(configuration("st", **options))
    goal = Goal(scope="model", seconds=1.0)
    shapes = call_shapes(model, lambda: run(model, goal))
    (after,) = shapes[model.postencoder.length_adaptor[0]]
    frames = after.inputs[0][-1]
    for ctc in (model.ctc, model.st_ctc):
        (call,) = shapes[ctc.ctc_lo]
        assert call.inputs[0][1] == frames
    before = dict(model.encoder._forward_hooks)
    with pytest.raises(ValueError, match=r"seconds is 0\.05"):
        run(model, Goal(scope="model", seconds=0.05))
    assert dict(model.encoder._forward_hooks) == before


@pytest.mark.parametrize("part", ["hier_encoder", "md_encoder", "postencoder"])
def test_sizes_of_every_part_are_bounded(part):
    args = configuration("st", **{f"{part}_conf": {"max_pos_emb_len": 2**34}})
    with pytest.raises(ValueError, match=r"max_pos_emb_len: .*; expected at most"):
        check_sizes(args)
