"""Packed models: what is in them, and that they decode to the same text."""

import copy
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet_model_zoo.downloader import ModelDownloader
from PIL import Image
from torch.onnx._internal.exporter import _onnx_program

from espnet_l0prune.cli import main
from espnet_l0prune.networks.espnet_modules import TooShortUttError
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments, disturb_
from tests.deploy.test_stock import cut_model
from tests.plugin.networks import ATTENTION

# The least that a block can be, where it only has to be packed.
TINY = {
    "output_size": 8,
    "attention_heads": 2,
    "num_blocks": 1,
    "macaron_style": False,
    "use_cnn_module": False,
    **ATTENTION["absolute"],
}

# The plugin is not there: it cannot even be imported.
DECODE = """
import sys
sys.modules["espnet_l0prune"] = None
import numpy as np
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet_model_zoo.downloader import ModelDownloader
feats, *archives = sys.argv[1:]
assert "l0_conformer" not in ASRTask.get_parser().format_help()
for archive in archives:
    files = ModelDownloader("cache").download_and_unpack(archive)
    speech2text = Speech2Text.from_pretrained(**files, beam_size=3)
    assert "espnet2" in type(speech2text.asr_model.encoder).__module__
    for x in np.load(feats):
        print("HYP", *speech2text(x)[0][2])
"""
EARLIER = Path(__file__).parents[1] / "versions"  # what earlier versions wrote


@pytest.fixture(scope="module")
def experiment(request, tmp_path_factory):
    """As fine-tuning leaves it; the weights are random."""
    folder = tmp_path_factory.mktemp("exp") / "asr_finetuned"
    model, args = cut_model(getattr(request, "param", "conformer"), 1, blocks=1)
    (folder / "images").mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "images/acc.png")
    (folder / "RESULTS.md").write_text("# RESULTS\n\n|WER|\n|---|\n")
    config = vars(args)
    config["model_conf"] |= {
        "teacher_config": str(folder / "none.yaml"),
        "teacher_model_file": str(folder / "none.pth"),
        "layer_projection": "teacher",
    }
    config["normalize"] = "global_mvn"
    stats = folder / "feats_stats.npz"
    np.savez(stats, count=10, sum=np.ones(20), sum_square=np.full(20, 12.0))
    config["normalize_conf"] = {"stats_file": str(stats)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = model.state_dict() | {"projection": torch.eye(16)}
    state |= {"normalize.mean": torch.full((20,), 0.1), "normalize.std": torch.ones(20)}
    torch.save(state, folder / "valid.acc.ave.pth")
    return folder


def feats() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 60, 20)).astype("f")


def texts(speech2text) -> list[list[int]]:
    return [speech2text(x)[0][2] for x in feats()]


def require_same(one, two) -> None:
    """Texts, and scores, which tell utterances apart where random models do not."""
    found = [[s2t(x)[0] for x in feats()] for s2t in (one, two)]
    ids, scores = (
        [[x[2] for x in some] for some in found],
        [[float(x[3].score) for x in some] for some in found],
    )
    assert ids[0] == ids[1]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-3)
    assert len(set(scores[0])) == len(feats())


def read(path) -> tuple[set[str], dict, str]:
    with zipfile.ZipFile(path) as archive:
        config = yaml.safe_load(archive.read("config.yaml"))
        return set(archive.namelist()), config, archive.read("README.md").decode()


def test_a_tokenizer_of_the_hub_is_no_file(experiment, tmp_path):
    copy = tmp_path / "exp"
    shutil.copytree(experiment, copy)
    tokens = {"token_type": "hugging_face", "bpemodel": "bert-base-uncased"}
    config = yaml.safe_load((copy / "config.yaml").read_text()) | tokens
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["export", "plugin", str(copy), "--out", str(tmp_path / "m.zip")]) == 0
    assert read(tmp_path / "m.zip")[1]["bpemodel"] == "bert-base-uncased"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "experiment"),
    [
        ("plugin", "conformer"),
        ("onnx", "conformer"),
        ("plugin", "transformer"),  # whose decoder was cut too
        ("stock", "transformer"),
    ],
    indirect=["experiment"],
)
def test_it_is_whole_and_decodes_to_the_same_text(form, experiment, tmp_path, capsys):
    out = tmp_path / "model.zip"
    command = ["export", form, str(experiment), "--out", str(out), "--name", "me/model"]
    assert main([*command, "--language", "en", "--datasets", "digits"]) == 0
    names, config, card = read(out)
    graphs = {"encoder.onnx", "ctc.onnx", "decoder.onnx"} if form == "onnx" else set()
    assert names == graphs | {
        "meta.yaml", "config.yaml", "model.pth", "feats_stats.npz", "README.md",
        "RESULTS.md", "images/acc.png",
    }  # fmt: skip
    assert str(experiment.parent) not in yaml.safe_dump(config)  # no path, no teacher
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "tags": ["espnet", "audio", "automatic-speech-recognition", "pruning"],
        "language": "en",
        "license": "cc-by-4.0",
        "datasets": ["digits"],
    }
    wheel = "espnet_l0prune-0.2.0-py3-none-any.whl"
    packages = {"plugin": f" {wheel}", "onnx": f" onnxruntime {wheel}"}.get(form, "")
    assert f"pip install espnet espnet_model_zoo{packages}\n```" in text
    source = f"{wheel} is in no registry: `make dist`"
    told = f"pip install{packages}. {source}"
    assert (told in capsys.readouterr().out) == (source in text) == bool(packages)
    for part in ('from_pretrained("me/model")', "| MACs of the encoder (M) |", "|WER|",
                 "encoder.encoders.0", "jiang23_interspeech"):  # fmt: skip
        assert part in text

    direct = texts(
        Speech2Text(
            experiment / "config.yaml", experiment / "valid.acc.ave.pth", beam_size=3
        )
    )
    assert any(direct)
    if form != "stock":
        assert texts(unpacked(out, tmp_path)) == direct
        return
    archives = [out]
    for file in sorted(EARLIER.glob("*.zip")):
        with zipfile.ZipFile(file) as archive:
            archives.append(Path(archive.extract("stock.zip", tmp_path / file.stem)))
    assert len(archives) >= 3
    np.save(tmp_path / "feats.npy", feats())
    result = subprocess.run(
        [sys.executable, "-c", DECODE, tmp_path / "feats.npy", *archives],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "ESPNET_L0PRUNE_AUTOLOAD": "0", "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    lines = [x.split()[1:] for x in result.stdout.splitlines() if x[:3] == "HYP"]
    alone = [[int(t) for t in line] for line in lines]
    # what else earlier ones compute, their own test knows
    assert alone == sum((texts(unpacked(x, tmp_path)) for x in archives[1:]), direct)


def unpacked(archive: Path, folder: Path) -> Speech2Text:
    files = ModelDownloader(folder / "cache").download_and_unpack(str(archive))
    return Speech2Text.from_pretrained(**files, beam_size=3)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "ctc_weight"), [("plugin", 0.3), ("onnx", 0.0)])
def test_a_transducer(form, ctc_weight, tmp_path, capsys):
    """Whose prediction and joint network stay with torch."""
    args = arguments(decoder="transducer", model_conf={"ctc_weight": ctc_weight})
    args.decoder_conf, args.joint_net_conf = {"hidden_size": 8}, {"joint_space_size": 8}
    args.encoder_conf |= {**TINY, "units": []}
    args.optim, args.optim_conf = "adamw", {}
    names = exported(form, ASRTask, args, Speech2Text, tmp_path, beam_size=3)
    graphs = {name for name in names if name.endswith(".onnx")}
    assert graphs == ({"encoder.onnx"} if form == "onnx" else set())


def exported(form, task, args, speech2text, folder, **options) -> set[str]:
    """Export a random model; its zip decodes as it does, and has these files."""
    torch.manual_seed(0)
    model, exp, out = task.build_model(args), folder / "exp", folder / "model.zip"
    disturb_(model.encoder)
    exp.mkdir()
    (exp / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), exp / "model.pth")
    assert main(["export", form, str(exp), "--out", str(out)]) == 0
    direct = speech2text(exp / "config.yaml", exp / "model.pth", **options)
    files = ModelDownloader(folder / "cache").download_and_unpack(str(out))
    require_same(speech2text.from_pretrained(**files, **options), direct)
    return read(out)[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plugin", "stock"])
def test_an_slu_model(form, tmp_path, capsys):
    task = importlib.import_module("espnet2.tasks.slu").SLUTask
    inference = importlib.import_module("espnet2.bin.slu_inference")
    args = task.get_parser().parse_args(["--output_dir", "none", "--token_type", "char"])
    for name, value in vars(arguments(model_conf={"ctc_weight": 0.3})).items():
        if hasattr(args, name):
            setattr(args, name, value)
    args.transcript_token_list = None
    args.encoder_conf |= {**TINY, "units": []}
    args.optim, args.optim_conf = "adamw", {}
    exported(form, task, args, inference.Speech2Understand, tmp_path, beam_size=3)


def wave(samples: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    return 0.1 * rng.standard_normal(samples, np.float32)


A_MINUTE = 60 * 16_000


@pytest.mark.slow
def test_audio_of_any_length(tmp_path, capsys):
    """The same text for it in all forms, or that it is too short.

    From what the STFT takes to what is longer than a table of legacy positions, of which
    ESPnet then makes another.
    """
    args = arguments(
        **{"input_size": None, "frontend": "default", "normalize": "utterance_mvn"},
        model="espnet",
        model_conf={"ctc_weight": 1.0},
        encoder="conformer",
        decoder=None,
        optim="adamw",
    )
    args.frontend_conf = {"hop_length": 256}
    args.encoder_conf = {
        **{"output_size": 8, "attention_heads": 1, "num_blocks": 1, "linear_units": 8},
        **{"input_layer": "conv2d6", "cnn_module_kernel": 5},  # 11 frames, or more
        "max_pos_emb_len": 500,
    }
    exp = tmp_path / "exp"
    exp.mkdir()
    torch.manual_seed(0)
    model = ASRTask.build_model(copy.deepcopy(args))
    disturb_(model.encoder)
    (exp / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), exp / "model.pth")
    options = {"beam_size": 2, "ctc_weight": 1.0, "maxlenratio": -4.0}
    forms = [Speech2Text(exp / "config.yaml", exp / "model.pth", **options)]
    for form in ("plugin", "stock", "onnx"):
        out = tmp_path / f"{form}.zip"
        assert main(["export", form, str(exp), "--out", str(out)]) == 0
        files = ModelDownloader(tmp_path / form).download_and_unpack(str(out))
        forms.append(Speech2Text.from_pretrained(**files, **options))
    for samples in (256 + 1, 300, 10 * 256 - 1):
        for speech2text in forms:
            with pytest.raises(TooShortUttError):
                speech2text(wave(samples))
    scores = set()
    for samples in (10 * 256, 3_000, 16_000, A_MINUTE):
        found = [speech2text(wave(samples))[0] for speech2text in forms]
        assert len({text for text, *_ in found}) == 1
        plain, *others = (float(hypothesis.score) for *_, hypothesis in found)
        assert others == pytest.approx([plain] * 3, rel=1e-4, abs=1e-3)
        scores.add(plain)
    assert len(scores) == 4


@pytest.mark.slow
def test_weights_beside_a_large_graph(tmp_path, monkeypatch, capsys):
    """In int8, and of the CTC in float: torch decides by their size that one file is too
    small. Random weights have no text to keep; `export` compares what it packed."""
    save_experiment(
        tmp_path / "exp", decoder=None, model_conf={"ctc_weight": 1.0}, encoder_conf=TINY
    )
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    out = tmp_path / "m.zip"
    command = ["export", "onnx", str(tmp_path / "exp"), "--out", str(out), "--int8"]
    assert main(command) == 0
    names, _, card = read(out)
    for part in ("encoder", "ctc"):
        assert {f"{part}.onnx", f"{part}.onnx.data"} <= names
        assert f"`{part}.onnx.data`: the weights of `{part}.onnx`" in card
    files = ModelDownloader(tmp_path / "cache").download_and_unpack(str(out))
    speech2text = Speech2Text.from_pretrained(**files, beam_size=2, ctc_weight=1.0)
    assert len(texts(speech2text)) == len(feats())


def test_bad_input_writes_nothing(experiment, tmp_path, capsys):
    def refused(*command: str) -> str:
        assert main(["export", "plugin", *command]) == 1
        return capsys.readouterr().err

    out, exp = str(tmp_path / "model.zip"), str(experiment)
    assert "expected the name of a .zip" in refused(exp, "--out", str(tmp_path / "x"))
    assert "no such checkpoint" in refused(exp, "--out", out, "--checkpoint", "no.pth")
    (tmp_path / "model.zip").write_text("mine")
    assert "exists; choose another --out" in refused(exp, "--out", out)
    assert (tmp_path / "model.zip").read_text() == "mine"
    int8 = refused(exp, "--out", str(tmp_path / "y.zip"), "--int8")
    assert "--int8 is for onnx, not for plugin" in int8
    assert main(["export", "plugin", exp, "--out", out, "--force"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.zip"]
