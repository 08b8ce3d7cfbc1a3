"""A stock experiment, adopted: it is pruned, cut, fine-tuned and decodes."""

import runpy
import shlex
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.bin.pack import main as pack
from espnet2.bin.s2t_inference import Speech2Text as S2TSpeech2Text
from espnet2.tasks.asr import ASRTask
from espnet2.tasks.s2t import S2TTask
from espnet_model_zoo.downloader import ModelDownloader

from espnet_l0prune.cli import main
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.plugin.schema import schema
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.runs import CONFIG, make_data, run

STOCK = {
    "model": "espnet",
    "optim": "adam",
    "optim_conf": {"lr": 2e-3},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 20},
    "sparsity_scheduler": None,
    "sparsity_constraint": None,
    "max_epoch": 2,
    "keep_nbest_models": 2,
    "best_model_criterion": [["valid", "acc", "max"]],
}
SMALL = {"output_size": 16, "attention_heads": 4, "linear_units": 24, "num_blocks": 2}
ENCODERS = {
    "conformer": {**SMALL, "macaron_style": True, "rel_pos_type": "latest"},
    "e_branchformer": {**SMALL, "cgmlp_linear_units": 24, "rel_pos_type": "latest"},
    "transformer": SMALL,
    "multiconv_conformer": {
        **{**SMALL, "cgmlp_linear_units": 24, "multicgmlp_kernel_sizes": "3,5"},
        "rel_pos_type": "latest",
    },
}
S2T_TOKENS = [
    "<blank>", "<unk>", "<na>", "<nolang>", "<eng>", "<asr>", "<notimestamps>", "<0.00>",
    "<1.00>", "<2.00>", *"ABCDEFGH", "<space>", "<sos>", "<eos>", "<sop>",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def follow(commands: list[str], task) -> None:
    """Run what `adopt` printed, in this process."""
    for command in commands:
        words = shlex.split(command)
        if words[0] == "espnet-l0prune":
            assert main(words[1:]) == 0
        else:
            assert words[:3] == ["python", "-m", f"espnet2.bin.{task}_train"]
            {"asr": ASRTask, "s2t": S2TTask}[task].main(cmd=words[3:])


def adopt(source, out, capsys, *more: str) -> list[str]:
    command = ["adopt", str(source), "--out", str(out), "--epochs", "6"]
    assert main([*command, "--finetune_epochs", "2", *more]) == 0
    return capsys.readouterr().out.split("Next:\n")[1].splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_from_a_dense_experiment_to_a_text(encoder, data, tmp_path, capsys):
    dense, out = tmp_path / "dense", tmp_path / "l0"
    run(data, dense, encoder=encoder, encoder_conf=ENCODERS[encoder], **STOCK)
    more = ["--params", "0.4"] + ["--scope", "model"] * (encoder == "transformer")
    commands = adopt(dense, out, capsys, *more)
    follow(commands, "asr")
    assert 0.4 <= cut_sparsity(out) < 0.5
    speech2text = Speech2Text(
        out / "finetuned/config.yaml", out / "finetuned/valid.acc.ave.pth", beam_size=2
    )
    text, *_ = speech2text(np.random.randn(60, 20).astype("f"))[0]
    assert isinstance(text, str)
    model, _ = load_experiment(out / "finetuned", "valid.acc.ave.pth")
    assert not any(site.gates for site in sites_of(model))


def cut_sparsity(out) -> float:
    return yaml.safe_load((out / "cut/cut.json").read_text())["sparsity"]["params"]


REFUSED = [
    (
        ["--params", "0.5", "sparsity_scheduler_conf.start=0.6"],
        "start is 0.6; expected at",
    ),
    (
        ["--macs", "0.5", "--params", "0.5", "sparsity_constraint=controlled_l2"],
        "holds all gates to one target; expected one cost",
    ),
    (["--params", "0.7", "--macs", "0.1"], "or take sparsity_constraint: inequality"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_the_training_would_refuse(words, message, tmp_path, capsys):
    save_experiment(tmp_path / "dense")
    *words, last = words
    words += ["--set", last] if "=" in last else [last]
    command = ["adopt", str(tmp_path / "dense"), *words, "--out"]
    assert main([*command, str(tmp_path / "l0")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "l0").exists()
    if "inequality" in message:
        inequality = ["--set", "sparsity_constraint=inequality"]
        assert main([*command, str(tmp_path / "l0"), *inequality]) == 0


TOO_LONG = [  # an epoch has 8 batches, so 4 updates
    (True, "but this run ends after 16: 4 epochs of 4. Raise max_epoch to 5, or shorten"),
    (False, "are 4.17 epochs in all; expected fewer than max_epoch, which is 4"),
]


@pytest.mark.slow
def test_an_owsm_like_experiment(tmp_path, capsys):
    make_speech(tmp_path)
    conf = {
        "token_list": S2T_TOKENS,
        "input_size": None,
        "frontend": "default",
        "frontend_conf": {"fs": 16000, "n_fft": 256, "n_mels": 20},
        "preprocessor": "s2t",
        "preprocessor_conf": {
            "fs": 16000, "speech_length": 0.6, "speech_init_silence": 0.1,
            "notime_symbol": "<notimestamps>", "first_time_symbol": "<0.00>",
            "last_time_symbol": "<2.00>", "text_prev_name": "text_prev",
        },
        "token_type": "char",
        "non_linguistic_symbols": [t for t in S2T_TOKENS if t.startswith("<")],
        "encoder": "e_branchformer",
        "encoder_conf": {**ENCODERS["e_branchformer"], "num_blocks": 1},
    }  # fmt: skip
    config = {**CONFIG, **STOCK, **conf}
    for part in ("train", "valid"):
        config[f"{part}_data_path_and_name_and_type"] = [
            [f"{tmp_path}/{file}", name, kind]
            for file, name, kind in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("text_prev", "text_prev", "text"),
                ("text_ctc", "text_ctc", "text"),
            )
        ]
        config[f"{part}_shape_file"] = [f"{tmp_path}/shape"]
    for name in ("sparsity_scheduler", "sparsity_constraint"):
        for key in [key for key in config if key.startswith(name)]:
            del config[key]
    (tmp_path / "dense.yaml").write_text(yaml.safe_dump(config))
    dense, out = tmp_path / "dense", tmp_path / "l0"
    command = ["--config", str(tmp_path / "dense.yaml"), "--output_dir", str(dense)]
    S2TTask.main(cmd=command)
    follow(adopt(dense, out, capsys, "--params", "0.4"), "s2t")
    assert 0.4 <= cut_sparsity(out) < 0.5
    speech2text = S2TSpeech2Text(
        out / "finetuned/config.yaml",
        out / "finetuned/valid.acc.ave.pth",
        beam_size=2,
        maxlenratio=-8,
    )
    speech = torch.randn(8000)
    text, *_ = speech2text(speech)[0]
    assert text.startswith("<eng><asr><notimestamps>")
    archive = tmp_path / "onnx.zip"
    assert main(["export", "onnx", str(out / "finetuned"), "--out", str(archive)]) == 0
    files = ModelDownloader(tmp_path / "cache").download_and_unpack(str(archive))
    again = S2TSpeech2Text.from_pretrained(**files, beam_size=2, maxlenratio=-8)
    assert again(speech)[0][0] == text


def make_speech(folder) -> None:
    """Noise and texts, in the form of OWSM's data."""
    rng = np.random.default_rng(0)
    lines = {"wav.scp": [], "text": [], "text_prev": [], "text_ctc": [], "shape": []}
    for i in range(8):
        soundfile.write(folder / f"{i}.wav", rng.standard_normal(8000) * 0.1, 16000)
        letters = "".join(rng.choice(list("ABCDEFGH"), 3))
        lines["wav.scp"].append(f"u{i} {folder}/{i}.wav")
        lines["text"].append(f"u{i}  <eng><asr><0.00>{letters}<1.00>")
        lines["text_prev"].append(f"u{i} <na>")
        # as in data for translation, some have nothing that the CTC could learn
        lines["text_ctc"].append(f"u{i} {letters if i >= 5 else '<na>'}")
        lines["shape"].append(f"u{i} 9600")
    for name, entries in lines.items():
        (folder / name).write_text("\n".join(entries) + "\n")


@pytest.mark.slow
def test_a_zip_of_the_model_zoo(tmp_path, capsys, monkeypatch):
    """Its data lie below the folder that one works in, as those of ESPnet's recipes."""
    monkeypatch.chdir(tmp_path)
    dense, out, data = tmp_path / "dense", tmp_path / "l0", Path("data")
    data.mkdir()
    make_data(data)
    run(data, dense, encoder="conformer", encoder_conf=ENCODERS["conformer"], **STOCK)
    monkeypatch.chdir(dense)
    pack([
        "asr", "--asr_train_config", "config.yaml", "--asr_model_file",
        "valid.acc.ave.pth", "--outpath", str(tmp_path / "packed.zip"),
    ])  # fmt: skip
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    follow(adopt("packed.zip", "l0", capsys, "--params", "0.4"), "asr")
    assert 0.4 <= cut_sparsity(out) < 0.5

    data_of = "train_data_path_and_name_and_type"
    for entry in (["feats", "speech", "kaldi_ark"], ["feats", "speech", "kaldi_ark_x"]):
        with zipfile.ZipFile("packed.zip") as packed, zipfile.ZipFile("z.zip", "w") as z:
            for name in packed.namelist():
                content = packed.read(name)
                if name == "config.yaml":
                    config = yaml.safe_load(content) | {data_of: [entry]}
                    content = yaml.safe_dump(config)
                z.writestr(name, content)
        assert main(["adopt", "z.zip", "--out", "new"]) == 1
        assert "have lists that can run commands" in capsys.readouterr().err
        assert not Path("new").exists()
    adopt("z.zip", "new", capsys, "--no_data")
    assert data_of not in yaml.safe_load(Path("new/prune.yaml").read_text())


@pytest.mark.slow
def test_the_example_in_python(data, tmp_path, capsys):
    """egs/librispeech/prune.py."""
    dense = tmp_path / "dense"
    run(data, dense, encoder="conformer", encoder_conf=ENCODERS["conformer"], **STOCK)
    script = Path(__file__).parents[2] / "egs/librispeech/prune.py"
    words = [dense, tmp_path / "l0", "--train", data, "--valid", data]
    words += ["--speech", "feats,npy", "--params", "0.4", "--epochs", "6", "2"]
    runpy.run_path(str(script))["main"]([str(word) for word in words])
    assert "parameters" in capsys.readouterr().out
    assert 0.4 <= cut_sparsity(tmp_path / "l0") < 0.5


def test_what_is_written(data, tmp_path, capsys):
    dense = tmp_path / "dense"
    run(data, dense, encoder="conformer", encoder_conf=ENCODERS["conformer"], **STOCK)
    adopt(dense, tmp_path / "l0", capsys, "--no_data", "--params", "0.3", "--macs", "0.4")
    prune, finetune = (
        yaml.safe_load((tmp_path / "l0" / f"{name}.yaml").read_text())
        for name in ("prune", "finetune")
    )
    model = str(dense / "valid.acc.ave.pth")
    for conf in (prune, finetune):
        assert conf["model_conf"]["teacher_model_file"] == model
        assert not any("data_path" in key or "shape_file" in key for key in conf)
    assert prune["init_param"] == [model]
    assert prune["optim_conf"] == {"weight_decay": 0.0, "lr": 2e-3}
    assert prune["sparsity_goal_conf"]["target"] == {"params": 0.3, "macs": 0.4}
    assert prune["encoder_conf"]["linear_units"] == SMALL["linear_units"]
    assert "sparsity_scheduler" not in finetune
    assert finetune["optim"] == "adam"
    assert finetune["optim_conf"]["lr"] == 6.7e-4  # a third, and falling
    assert finetune["scheduler"] == "l0_lineardecaylr"
    assert prune["scheduler_conf"] == {"warmup_steps": 2}
    validator = jsonschema.Draft202012Validator(schema())
    for conf in (prune, finetune):
        assert not [*validator.iter_errors(conf)]
    capsys.readouterr()

    def refused(*command: str) -> str:
        assert main(["adopt", *command]) == 1
        return capsys.readouterr().err

    folder, new = str(dense), str(tmp_path / "new")
    assert "exists; expected a new folder" in refused(
        folder, "--out", str(tmp_path / "l0")
    )
    assert "reach at most" in refused(folder, "--out", new, "--params", "0.99")
    assert "units has 'head'" in refused(folder, "--out", new, "--units", "head")
    assert "cannot be loaded" in refused(folder, "--out", new, "--checkpoint", "no.pth")
    for option, value, said in (
        ("--finetune_epochs", "0", "0; expected a whole number in [1, 1000000]"),
        ("--epochs", "-3", "-3; expected a whole number in [1, 1000000]"),
        ("--params", "nan", "nan; expected a number in (0, 1)"),
        ("--macs", "1e300", "1e+300; expected a number in (0, 1)"),
    ):
        message = f"command line: {option} is {said}"
        assert message in refused(folder, "--out", new, option, value)
    config = yaml.safe_load((dense / "config.yaml").read_text())
    for changes, message in (
        ({"encoder": "rnn"}, "encoder: rnn; only conformer, transformer"),
        ({"model": "enhanced"}, "has model: enhanced, which cannot learn from a"),
        ({"lm": "seq_rnn"}, "of ESPnet's lm task, whose gates cannot be trained"),
    ):
        (dense / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
        assert message in refused(folder, "--out", new)
    assert not (tmp_path / "new").exists()


def test_what_is_too_short_for_its_gates_is_told(tmp_path, capsys):
    """From the shape files, which tell how many updates an epoch has: here 4.

    Only gates that a penalty moves need so many.
    """
    shape = tmp_path / "shape"
    shape.write_text("".join(f"u{i} {50 + i},20\n" for i in range(16)))
    batches = {"batch_type": "unsorted", "batch_size": 2, "accum_grad": 2}
    dense = tmp_path / "dense"
    save_experiment(dense, **batches, train_shape_file=[str(shape)])

    def told(name: str, *more: str) -> str:
        more = (*more, "--set", "sparsity_constraint=lagrangian")
        assert main(["adopt", str(dense), "--out", str(tmp_path / name), *more]) == 0
        return capsys.readouterr().out.split("Next:")[0]

    assert main(["adopt", str(dense), "--out", str(tmp_path / "projected")]) == 0
    said = capsys.readouterr().out
    assert "to close one takes" not in said
    assert "dense for 2 updates, loses units for 33, keeps" in said  # of 13 epochs
    assert "settle for 6, and is trained with fixed gates for 11 updates." in said
    path = "12.5, 25, 37.5 and 50% after 10, 18, 27 and 35 updates."
    assert f"\nThe target in params is {path}\n" in said
    steps = ("--set", "sparsity_scheduler=staircase", "--macs", "0.3")
    said = told("two", *steps, "--set", "sparsity_scheduler_conf.stairs=2")
    assert "The target in macs is 15, 30, 30 and 30% after" in said
    assert "train for 39 updates (ramp and hold)" in told("default")  # 13 epochs
    assert "ramp_steps and hold_steps of 67.5 epochs in all" in told("again")
    assert "to close one takes" not in told("longer", "--epochs", "90")
    command = ["adopt", str(dense), "--out", str(tmp_path / "none")]
    start = ["--set", "sparsity_scheduler_conf.gate_start=taylor"]
    assert main([*command, *start]) == 1
    assert "makes 2 updates, but gate_start is 'taylor'" in capsys.readouterr().err
    told("measured", "--epochs", "120", *start)
    written = yaml.safe_load((tmp_path / "measured/prune.yaml").read_text("utf-8"))
    assert written["sparsity_scheduler_conf"]["gate_start"] == "taylor"
    shape.write_text("".join(f"u{i} {50 + i},20\n" for i in range(5)))  # 1 update
    assert main([*command, "--epochs", "1"]) == 1
    assert "hold_steps is 0.125 epochs, which is no update" in capsys.readouterr().err
    assert main([*command, "--set", "accum_grad=9"]) == 1
    assert "an epoch has fewer batches than accum_grad" in capsys.readouterr().err
    for text in ("u1 ?\n", None):
        shape.write_text(text) if text else shape.unlink()
        how = "--set", "batch_type=sorted"  # which needs the figures
        said = told(f"without_{text and 'figures'}", *how)
        assert "To close a gate takes some 270 updates. Ramp and hold have 9.75" in said
        assert "fewer than 28 updates, give more --epochs" in said
        assert "dense for 0.54 epochs, loses units for 8.12, keeps its size" in said


@pytest.mark.parametrize(("data", "message"), TOO_LONG)
def test_phases_that_are_longer_than_the_run(data, message, tmp_path, capsys):
    """What the training would refuse, `adopt` refuses."""
    shape = tmp_path / "shape"
    shape.write_text("".join(f"u{i} {50 + i},20\n" for i in range(16)))
    batches = {"batch_type": "unsorted", "batch_size": 2}
    save_experiment(tmp_path / "dense", **batches, train_shape_file=[str(shape)])
    if not data:
        shape.unlink()
    command = ["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]
    command += ["--epochs", "4", "--set", "accum_grad=2"]
    assert main([*command, "--set", "sparsity_scheduler_conf.ramp_steps=3.5"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "l0").exists()


def test_a_schedule_of_the_rate_that_has_a_length_of_its_own(tmp_path, capsys):
    conf = {"warmup_steps_list": [0, 30_000], "warmup_lr_list": [0.0, 0.001]}
    schedule = {"scheduler": "piecewiselinearwarmuplr", "scheduler_conf": conf}
    save_experiment(tmp_path / "dense", **schedule)
    assert main(["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]) == 0
    said = capsys.readouterr().out
    assert "scheduler: piecewiselinearwarmuplr has warmup_steps_list of the dense" in said


def test_rates_of_other_optimizers(tmp_path, capsys):
    """The peak of noamlr's rate is lr / sqrt(model_size warmup_steps)."""
    dense = tmp_path / "a dense one"
    changes = {"scheduler": "noamlr", "scheduler_conf": {"warmup_steps": 2500}}
    changes |= {"ngpu": 1, "dist_world_size": 2}  # as a process of two writes it
    save_experiment(dense, optim="adam", optim_conf={"lr": 4.0}, **changes)
    commands = adopt(dense, tmp_path / "an l0 one", capsys)
    train = shlex.split(commands[0])
    assert train[3:7] == ["--ngpu", "2", "--multiprocessing_distributed", "true"]
    assert train[-1] == str(tmp_path / "an l0 one/pruned")
    conf = yaml.safe_load((tmp_path / "an l0 one/prune.yaml").read_text())
    assert conf["scheduler_conf"]["warmup_steps"] == 250
    assert conf["optim_conf"]["lr"] / 250**0.5 == pytest.approx(4 / 2500**0.5)

    save_experiment(tmp_path / "sgd", optim="sgd", optim_conf={"lr": 0.1})
    command = ["adopt", str(tmp_path / "sgd"), "--out", str(tmp_path / "l0")]
    assert main(command) == 0
    assert "optim: sgd has another learning rate" in capsys.readouterr().out
    prune = yaml.safe_load((tmp_path / "l0/prune.yaml").read_text())
    assert prune["optim_conf"] == {"weight_decay": 0.0}


def test_units_go_to_the_networks_that_have_them(tmp_path, capsys):
    save_experiment(tmp_path / "dense")
    words = ["adopt", str(tmp_path / "dense"), "--params", "0.1"]
    both = ["--scope", "model", "--units", "blocks,src_heads,conv_channels"]
    assert main([*words, "--out", str(tmp_path / "l0"), *both]) == 0
    prune = yaml.safe_load((tmp_path / "l0/prune.yaml").read_text())
    assert prune["encoder_conf"]["units"] == ["blocks", "conv_channels"]
    assert prune["decoder_conf"]["units"] == ["blocks", "src_heads"]
    capsys.readouterr()
    words += ["--out", str(tmp_path / "new"), "--units"]
    assert main([*words, "src_heads"]) == 1
    assert "units has 'src_heads', but nothing in" in capsys.readouterr().err
    assert main([*words, "cgmlp_channels", "--scope", "model"]) == 1
    assert "units has 'cgmlp_channels', but nothing in" in capsys.readouterr().err


def test_a_model_with_gates_is_refused(tmp_path, capsys):
    save_experiment(tmp_path / "gated", encoder="l0_conformer", model="l0_distill")
    assert main(["adopt", str(tmp_path / "gated"), "--out", str(tmp_path / "l0")]) == 1
    assert "has gates; expected a dense model" in capsys.readouterr().err
