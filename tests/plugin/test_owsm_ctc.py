"""OWSM-CTC: from a training of ESPnet's own to long audio, decoded from a zip."""

import copy
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import yaml
from espnet2.bin.s2t_inference_ctc import Speech2TextGreedySearch
from espnet2.tasks.s2t_ctc import S2TTask

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.networks.espnet_modules import EBranchformerCTCEncoder
from espnet_l0prune.plugin import s2t_train_ctc
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.experiment import load_model, read_config
from espnet_l0prune.testing.models import disturb_
from espnet_l0prune.testing.runs import CONFIG
from tests.speech import read_mini_an4

RATE = 16_000
CONTEXT = {"context_len_in_secs": 0.24}  # 3 frames of the encoder
SPECIAL = ["<na>", "<nolang>", "<eng>", "<asr>", "<sos>", "<eos>", "<sop>"]
DECODE = """
import sys
import numpy as np
from espnet2.bin.s2t_inference_ctc import Speech2TextGreedySearch
seconds, config, weights, *waves = sys.argv[1:]
search = Speech2TextGreedySearch(config, weights, lang_sym="<eng>")
search.s2t_train_args.preprocessor_conf["speech_length"] = float(seconds)
for wave in waves:
    print("decoded", repr(search(np.load(wave))[0][1]))
"""
RUN = ("num_workers", "num_att_plot", "use_tensorboard", "use_matplotlib", "batch_type")
# The values of OWSM-CTC v3.1 (https://huggingface.co/espnet/owsm_ctc_v3.1_1B), with 4 of
# its 27 blocks and 24 of its 1024 features
OWSM_CTC = {
    "frontend": "default",
    "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 160, "fs": "16k"},
    "specaug": "specaug",
    "specaug_conf": {
        "apply_time_warp": False,
        "apply_freq_mask": True,
        "freq_mask_width_range": [0, 27],
        "num_freq_mask": 2,
        "apply_time_mask": True,
        "time_mask_width_ratio_range": [0.0, 0.05],
        "num_time_mask": 2,
    },
    "normalize": "utterance_mvn",
    "encoder": "e_branchformer_ctc",
    "encoder_conf": {
        "output_size": 24,
        "attention_heads": 4,
        "attention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "rel_pos_type": "latest",
        "cgmlp_linear_units": 48,
        "cgmlp_conv_kernel": 31,
        "use_linear_after_conv": False,
        "gate_activation": "identity",
        "num_blocks": 4,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "input_layer": "conv2d8",
        "layer_drop_rate": 0.0,
        "linear_units": 48,
        "positionwise_layer_type": "linear",
        "use_ffn": True,
        "macaron_ffn": True,
        "merge_conv_kernel": 31,
        "interctc_layer_idx": [1, 2, 3],
        "interctc_use_conditioning": True,
        "use_cross_attention": [False, True, True, True],
        "use_flash_attn": False,
    },
    "promptencoder": "transformer",
    "promptencoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "num_blocks": 1,
    },
    "model": "espnet_ctc",
    "model_conf": {
        "interctc_weight": 0.75,
        "ctc_asr_only": [True, False, False, False],
        "report_cer": False,
        "report_wer": False,
    },
    "preprocessor": "s2t_ctc",
    "preprocessor_conf": {
        "fs": RATE,
        "speech_length": 1.2,
        "speech_init_silence": 0.1,
        "text_prev_apply_prob": 0.5,
        "lang_apply_prob": 0.5,
    },
}


def noise() -> dict[str, tuple[np.ndarray, str]]:
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ABCDEFGH"), 4)) for _ in range(8)]
    return {f"u{i}": (rng.standard_normal(RATE) * 0.1, x) for i, x in enumerate(letters)}


def make_corpus(folder, utterances: dict[str, tuple[np.ndarray, str]]) -> dict:
    """Audio, texts, and sentencepiece's model of these; the options that name them."""
    texts = [text for _, text in utterances.values()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 9),
        model_prefix=str(folder / "bpe"),
        vocab_size=11 + len(SPECIAL) + len({*"".join(texts)}),
        hard_vocab_limit=False,
        user_defined_symbols=SPECIAL,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    known = [pieces.id_to_piece(i) for i in range(len(pieces))]
    tokens = ["<blank>", "<unk>", *(piece for piece in known if piece != "<unk>")]
    lines = {"wav.scp": [], "text": [], "prev": [], "ctc": [], "shape": []}
    for i, (name, (wave, text)) in enumerate(utterances.items()):
        soundfile.write(folder / f"{name}.wav", wave, RATE)
        lines["wav.scp"].append(f"{name} {folder}/{name}.wav")
        lines["text"].append(f"{name} <eng><asr>{text}")
        lines["prev"].append(f"{name} {texts[i - 1] if i % 2 else '<na>'}")
        lines["ctc"].append(f"{name} {text}")
        lines["shape"].append(f"{name} {len(wave)}")
    for name, entries in lines.items():
        (folder / name).write_text("\n".join(entries) + "\n")
    data = [
        [f"{folder}/wav.scp", "speech", "sound"],
        [f"{folder}/text", "text", "text"],
        [f"{folder}/prev", "text_prev", "text"],
        [f"{folder}/ctc", "text_ctc", "text"],
    ]
    return {
        "token_list": tokens,
        "token_type": "bpe",
        "bpemodel": f"{folder}/bpe.model",
        **{f"{part}_data_path_and_name_and_type": data for part in ("train", "valid")},
        **{f"{part}_shape_file": [f"{folder}/shape"] for part in ("train", "valid")},
    }


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return train(tmp_path_factory.mktemp("owsm"), noise())


def train(folder, utterances: dict[str, tuple[np.ndarray, str]], **changes):
    """An experiment that ESPnet trained, for an epoch unless it is changed."""
    conf = {
        **{name: CONFIG[name] for name in RUN},
        **OWSM_CTC,
        **make_corpus(folder, utterances),
        "optim": "adamw",
        "optim_conf": {"lr": 1e-3},
        "batch_size": 4,
        "max_epoch": 1,
        "best_model_criterion": [["valid", "loss", "min"]],
        **changes,
    }
    (folder / "dense.yaml").write_text(yaml.safe_dump(conf))
    command = ["--config", str(folder / "dense.yaml")]
    S2TTask.main(cmd=[*command, "--output_dir", str(folder / "dense")])
    return folder / "dense"


def batch(tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def text(length: int) -> torch.Tensor:
        return torch.randint(9, tokens, (3, length), generator=generator)

    return {
        "speech": 0.1 * torch.randn(3, 19_200, generator=generator),
        "speech_lengths": torch.tensor([19_200] * 3),
        "text": text(5),
        "text_lengths": torch.tensor([5, 3, 4]),
        "text_prev": text(6),
        "text_prev_lengths": torch.tensor([6, 2, 3]),
        "text_ctc": text(4),
        "text_ctc_lengths": torch.tensor([4, 3, 2]),
        "prefix": text(2),
        "prefix_lengths": torch.tensor([2] * 3),
    }


def test_it_is_espnets_model_with_a_teacher(dense):
    files = dense / "config.yaml", dense / "valid.loss.ave.pth"
    stock, args = load_model(*files)
    disturb_(stock.encoder)
    args = copy.deepcopy(read_config(files[0]))
    args.encoder, args.model = "l0_e_branchformer_ctc", "l0_distill"
    args.encoder_conf["units"] = []
    args.model_conf |= {"layer_weight": 1.0, "disturb_probability": 1.0}
    args.model_conf |= {"teacher_config": str(files[0])}
    args.model_conf |= {"teacher_model_file": str(files[1])}
    model = build_model(args)
    model.load_state_dict(stock.state_dict())

    def heard(net, training: bool = False) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return net.train(training)(**batch(stock.vocab_size))[1]

    assert heard(model)["loss"] == heard(stock)["loss"]
    model.load_teacher_(torch.optim.SGD(model.parameters(), lr=0.1))
    model.load_state_dict(model.teacher.model.state_dict())
    names = "loss_ctc_kl", "loss_layer"
    assert all(abs(float(heard(model)[name])) < 1e-5 for name in names)
    # in training it hears disturbed speech, and its teacher does not
    assert all(float(heard(model, training=True)[name]) > 1e-4 for name in names)


def test_intermediate_posteriors_are_learnt_as_espnet_weighs_them(dense):
    """The divergence of the last layer, and the mean of those between, by hand."""
    files = dense / "config.yaml", dense / "valid.loss.ave.pth"
    args = read_config(files[0])
    args.encoder, args.model = "l0_e_branchformer_ctc", "l0_distill"
    args.encoder_conf["units"] = []
    args.model_conf |= {"teacher_config": str(files[0])}
    args.model_conf |= {"teacher_model_file": str(files[1])}
    torch.manual_seed(1)
    model = build_model(args).eval()
    model.load_teacher_(torch.optim.SGD(model.parameters(), lr=0.1))
    data = batch(model.vocab_size)
    found = model(**copy.deepcopy(data))[1]["loss_ctc_kl"]

    def posteriors(net, encode) -> list[torch.Tensor]:
        (last, between), lengths = encode()
        assert lengths.tolist() == [last.size(1)] * 3
        return [net.ctc.log_softmax(x) for x in (last, *(x for _, x in between))]

    names = ("speech", "text_prev", "prefix")
    inputs = {k: v for k, v in data.items() if k.removesuffix("_lengths") in names}
    with torch.no_grad():
        mine = posteriors(model, lambda: model.encode(**copy.deepcopy(inputs)))
        # the teacher embeds the prompt by itself, and has a front end that is the same
        teacher = model.teacher.model
        theirs = posteriors(teacher, lambda: teacher.encode(**copy.deepcopy(inputs)))
    last, *between = (
        float((q.exp() * (q - p)).sum()) / 3 for p, q in zip(mine, theirs, strict=True)
    )
    assert len(between) == 3
    expected = 0.25 * last + 0.75 * sum(between) / 3
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_probe_of_it(dense, capsys):
    """With the prompt, of which the preprocessor draws a part."""
    found = []
    for _ in range(2):
        assert main(["probe", str(dense), "--utterances", "2", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    places = {worth["place"]: worth["whole"] for worth in found[0]["worths"]}
    assert "encoder.encoders.1.cross_attn" in places
    for closed in places.values():
        assert closed["harm"]["kls"].keys() == {"ctc"}
        assert closed["harm"]["kls"]["ctc"] > 0


def prune(dense, out, capsys, *more: str) -> None:
    """Adopt an experiment, and run the commands that this prints."""
    words = ["adopt", str(dense), "--out", str(out), "--params", "0.4", "--macs", "0.4"]
    assert main([*words, *more]) == 0
    printed = capsys.readouterr().out.split("Next:\n")[1].splitlines()
    pruning, cutting, tuning = map(shlex.split, printed)
    assert pruning[2] == tuning[2] == s2t_train_ctc.__name__
    s2t_train_ctc.main(pruning[3:])
    assert main(cutting[1:]) == 0
    s2t_train_ctc.main(tuning[3:])


def decoded_elsewhere(home, seconds: float, *files) -> str:
    """What DECODE prints in a home where nothing was cached, or downloaded."""
    home.mkdir()
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", DECODE, str(seconds), *map(str, files)],
        env={**clean, "HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_whole_line_to_long_audio(dense, tmp_path, capsys):
    out = tmp_path / "l0"
    more = ["--set", "encoder_conf.uniform=true"]  # so that plain ESPnet can say it
    prune(dense, out, capsys, *more, "--epochs", "8", "--finetune_epochs", "2")

    counts = yaml.safe_load((out / "cut/structure.yaml").read_text())
    prompted = [name for name in counts if name.endswith("cross_attn")]
    assert prompted == [f"encoders.{i}.cross_attn" for i in (1, 2, 3)]
    rng = np.random.default_rng(1)
    short = [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (RATE, RATE // 2)]
    long = rng.standard_normal(5 * RATE).astype(np.float32) * 0.1

    def decoded(config, weights) -> list:
        search = Speech2TextGreedySearch(str(config), str(weights), lang_sym="<eng>")
        search.s2t_train_args.preprocessor_conf["speech_length"] = 1.2
        return [
            *(search(np.pad(x, (0, 19_200 - len(x))))[0][1:3] for x in short),
            search.batch_decode([*short, long], batch_size=2, **CONTEXT),
            search.decode_long_batched_buffered(long, **CONTEXT),
        ]

    masked = out / "pruned/config.yaml", out / "pruned/latest.pth"
    assert decoded(*masked) == decoded(out / "cut/config.yaml", out / "cut/model.pth")
    trained = [out / "finetuned" / n for n in ("config.yaml", "valid.loss.ave.pth")]
    for form in ("plugin", "stock"):
        command = ["export", form, str(out / "finetuned"), "--out", f"{out}/{form}.zip"]
        assert main(command) == 0, capsys.readouterr().err
        files = unpack_model(out / f"{form}.zip", tmp_path / form)
        model, args = load_model(*files)
        assert (type(model.encoder) is EBranchformerCTCEncoder) == (form == "stock")
        assert args.model == {"plugin": "l0_distill", "stock": "espnet_ctc"}[form]
        assert decoded(*files) == decoded(*trained)
        np.save(tmp_path / "short.npy", np.pad(short[0], (0, 19_200 - RATE)))
        wave = tmp_path / "short.npy"
        printed = decoded_elsewhere(tmp_path / f"home-{form}", 1.2, *files, wave)
        assert f"decoded {decoded(*trained)[0][0]!r}" in printed
    command = ["export", "onnx", str(out / "finetuned"), "--out", f"{out}/onnx.zip"]
    assert main(command) == 1
    assert "reads a prompt beside the features" in capsys.readouterr().err


@pytest.mark.slow
def test_real_speech_to_the_same_texts_in_another_home(mini_an4, tmp_path, capsys):
    """What was packed says of each recording what the fine-tuned experiment says."""
    utterances, out = read_mini_an4(mini_an4), tmp_path / "l0"
    longest = max(len(wave) for wave, _ in utterances.values()) / RATE
    conf = {**OWSM_CTC["preprocessor_conf"], "speech_length": longest}
    quick = {"optim_conf": {"lr": 0.005}, "batch_size": 2, "max_epoch": 40}
    dense = train(tmp_path, utterances, preprocessor_conf=conf, **quick)
    prune(dense, out, capsys, "--epochs", "12", "--finetune_epochs", "2")
    config, weights = (
        out / "finetuned" / name for name in ("config.yaml", "valid.loss.ave.pth")
    )
    search = Speech2TextGreedySearch(str(config), str(weights), lang_sym="<eng>")
    archive, said = tmp_path / "pruned.zip", []
    command = ["export", "plugin", str(out / "finetuned"), "--out", str(archive)]
    assert main(command) == 0
    files = unpack_model(archive, tmp_path / "unpacked")
    for name, (wave, _) in utterances.items():
        silence = round(longest * RATE) - len(wave)
        padded = np.pad(wave, (0, silence)).astype(np.float32)
        np.save(tmp_path / f"{name}.npy", padded)
        said.append(f"decoded {search(padded)[0][1]!r}")
    assert len({*said}) > 3
    for folder in (dense, out):
        folder.rename(tmp_path / f"{folder.name}-elsewhere")
    waves = [tmp_path / f"{name}.npy" for name in utterances]
    printed = decoded_elsewhere(tmp_path / "home", longest, *files, *waves)
    assert [line for line in printed.splitlines() if "decoded" in line] == said
