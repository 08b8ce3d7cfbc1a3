"""sherpa-onnx decodes what is exported for it to the texts that torch gives."""

import json
import os
import re
import shutil
import subprocess
import sys
import wave
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx
import pytest
import sherpa_onnx
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.exports import sherpa
from espnet_l0prune.deploy.exports.divergence import divergence
from espnet_l0prune.deploy.exports.fbank import fbank
from espnet_l0prune.deploy.exports.onnx import (
    exportable,
    linear_masks,
    padding_mask,
    write_graph,
)
from espnet_l0prune.deploy.sherpa import tokens_of
from espnet_l0prune.networks.espnet_modules import DefaultFrontend, make_pad_mask
from espnet_l0prune.plugin.onnx import OnnxGraph
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import TOKENS, arguments, disturb_, whole

FRONTEND = {"fs": 16000, "n_fft": 512, "hop_length": 160, "win_length": 400}
HEARD = {"input_size": None, "frontend": "default", "frontend_conf": FRONTEND}


def audio(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades, and changes its colour: no two frames are alike."""
    generator = np.random.default_rng(seed)
    samples = generator.standard_normal(int(16000 * seconds))
    slow = np.convolve(samples, np.ones(32) / 32, "same")
    turns = np.sin(np.arange(len(samples)) / (500 + 200 * seed))
    return (0.1 * turns * np.where(turns > 0, samples, 4 * slow)).astype(np.float32)


CUT = {
    "embed.conv.0": {"frontend_channels": 7},
    "encoders.0.feed_forward": {"ffn_channels": 5},
    "encoders.1.self_attn": {"heads": 3},
    "encoders.1.conv_module": {"conv_channels": 0, "conv_modules": 0},
}


def saved(folder: Path, normalize: str, structure: dict | None = None):
    """An experiment with weights that tell frames apart: its texts have tokens."""
    changes = {**HEARD, "normalize": normalize}
    if structure is not None:
        whole_one = ASRTask.build_model(arguments(**HEARD, encoder_conf={"units": []}))
        left = whole(whole_one.encoder, structure)
        changes |= {
            "encoder": "l0_conformer",
            "encoder_conf": {"units": [], "structure": left},
        }
    if normalize == "global_mvn":
        generator = np.random.default_rng(0)
        means, spread = generator.uniform(-9, -3, 80), generator.uniform(1, 3, 80)
        sums = {"sum": 10 * means, "sum_square": 10 * (means**2 + spread**2)}
        folder.mkdir()
        np.savez(folder / "stats.npz", count=10, **sums)
        changes["normalize_conf"] = {"stats_file": str(folder / "stats.npz")}
    model = save_experiment(folder, **changes).eval()
    disturb_(model.encoder)
    with torch.no_grad():
        model.ctc.ctc_lo.weight *= 8
        model.ctc.ctc_lo.bias.zero_()
    torch.save(model.state_dict(), folder / "model.pth")
    return model


def exported(experiment: Path, *more: str) -> Path:
    out = experiment.with_name(f"{experiment.name}_sherpa")
    command = ["export", "sherpa", str(experiment), "--out", str(out), "--force"]
    assert main([*command, "--checkpoint", "model.pth", *more]) == 0
    return out


def recognizer(folder: Path):
    route = json.loads((folder / "sherpa.json").read_text())["route"]
    load = getattr(sherpa_onnx.OfflineRecognizer, route)
    return load(model=str(folder / "model.onnx"), tokens=str(folder / "tokens.txt"))


def decoded(by, *waves: np.ndarray) -> list[str]:
    streams = [by.create_stream() for _ in waves]
    for stream, samples in zip(streams, waves, strict=True):
        stream.accept_waveform(16000, samples)
    by.decode_streams(streams)
    return [stream.result.text for stream in streams]


@torch.no_grad()
def greedy(model, feats: torch.Tensor) -> str:
    """The text of ESPnet's model for normalized features (1, T, 80), without blanks."""
    encoded = model.encoder(feats, torch.tensor([feats.size(1)]))[0]
    ids = [i for i, _ in groupby(model.ctc.argmax(encoded)[0].tolist()) if i]
    text = "".join(TOKENS[i] for i in ids).replace("<space>", " ")
    return text.removeprefix(" ")


@torch.no_grad()
def heard_by_espnet(model, samples: np.ndarray) -> torch.Tensor:
    wave = torch.from_numpy(samples)[None]
    feats, lengths = model.frontend(wave, torch.tensor([wave.size(1)]))
    return model.normalize(feats, lengths)[0]


@pytest.fixture(scope="module")
def by_waveform(tmp_path_factory):
    experiment = tmp_path_factory.mktemp("waveform") / "exp"
    model = saved(experiment, "utterance_mvn", CUT)
    return model, experiment, exported(experiment)


@pytest.fixture(scope="module")
def by_fbank(tmp_path_factory):
    experiment = tmp_path_factory.mktemp("fbank") / "exp"
    model = saved(experiment, "global_mvn")
    return model, experiment, exported(experiment)


WAVES = [audio(seconds, seed) for seed, seconds in enumerate((2.0, 0.7, 3.3))]


def test_by_the_waveform_it_decodes_as_espnet(by_waveform):
    model, _, folder = by_waveform
    texts = [greedy(model, heard_by_espnet(model, samples)) for samples in WAVES]
    assert min(map(len, texts)) > 3
    assert len({*texts}) == len(WAVES)
    assert decoded(recognizer(folder), *WAVES) == texts
    louder = [3 * samples for samples in WAVES]
    assert decoded(recognizer(folder), *louder) == texts


def test_by_features_it_decodes_as_torch_on_the_runtimes(by_fbank):
    """One by one and together, where neighbours and padding change nothing."""
    model, _, folder = by_fbank
    meta = onnx.load(folder / "model.onnx").metadata_props
    numbers = {x.key: [float(n) for n in x.value.split(",")] for x in meta}
    assert numbers["vocab_size"] == [len(TOKENS)]
    mean, scale = (torch.tensor(numbers[name]) for name in ("mean", "invstd"))

    def heard(samples):
        mel = model.frontend.logmel.melmat
        feats = fbank(torch.from_numpy(samples).double(), mel).float()
        return ((feats - mean) * scale)[None]

    texts = [greedy(model, heard(samples)) for samples in WAVES]
    assert min(map(len, texts)) > 3
    assert len({*texts}) == len(WAVES)
    by = recognizer(folder)
    assert [decoded(by, samples)[0] for samples in WAVES] == texts
    assert decoded(by, *WAVES) == texts


@pytest.mark.parametrize("window", [400, None])
def test_features_are_near_espnets(window):
    """On noise of another colour than that on which the difference was measured."""
    espnet = DefaultFrontend(**FRONTEND | {"win_length": window})
    samples = torch.from_numpy(WAVES[2])
    with torch.no_grad():
        expected = espnet(samples[None], torch.tensor([len(samples)]))[0][0]
        found = fbank(samples.double(), espnet.logmel.melmat).float()
        found -= sherpa.offset_from(espnet)
    apart = (found - expected[: len(found)]).mean(0).abs()
    assert apart.median() < 0.1
    assert expected.std(0).mean() > 1


TOY = """
<ir_version: 8, opset_import: ["" : 18]>
toy (float[N,T,80] x, int64[N] n) => (float[N,T,{classes}] logp, int64[N] counts)
<int64[1] band = {{{band}}}, int64[1] last = {{2}}, float low = {{20}},
    float scale = {{{scale}}}, float least = {{0}}, float most = {{{most}}},
    int64 two = {{2}}, int64 zero = {{0}}, int64 one = {{1}}, int64[1] first = {{0}},
    int64[1] depth = {{{classes}}}, float[2] values = {{0, 1}}>
{{
    column = Gather <axis = 2> (x, band)
    flat = Squeeze (column, last)
    above = Add (flat, low)
    steps = Mul (above, scale)
    rounded = Round (steps)
    clipped = Clip (rounded, least, most)
    level = Cast <to = 7> (clipped)
    doubled = Mul (level, two)
    length = Shape <start = 1, end = 2> (x)
    frames = Squeeze (length, first)
    times = Range (zero, frames, one)
    parity = Mod (times, two)
    index = Add (doubled, parity)
    logp = OneHot (index, depth, values)
    counts = Identity (n)
}}
"""


@pytest.mark.parametrize("band", [0, 5, 40, 79])
@pytest.mark.parametrize("samples", [80, 700, 8000])
def test_features_are_the_runtimes(band, samples, tmp_path):
    """A graph that answers with one feature, in steps of 1/50 nat, says what the runtime
    computes. Neighbouring frames have other tokens, as repeated ones would be lost."""
    levels, scale = 2000, 50
    toy = TOY.format(classes=2 * levels, band=band, scale=scale, most=levels - 1)
    model = onnx.parser.parse_model(toy)
    ones = {"mean": ",".join("0" * 80), "invstd": ",".join("1" * 80)}
    onnx.helper.set_model_props(model, {"vocab_size": str(2 * levels), **ones})
    onnx.save(model, tmp_path / "model.onnx")
    tokens = [*(f"t{i}" for i in range(2 * levels)), "<blk>"]
    lines = (f"{token} {i}\n" for i, token in enumerate(tokens))
    (tmp_path / "tokens.txt").write_text("".join(lines))
    by = sherpa_onnx.OfflineRecognizer.from_dolphin_ctc(
        str(tmp_path / "model.onnx"), str(tmp_path / "tokens.txt")
    )
    stream, heard = by.create_stream(), audio(1)[:samples]
    stream.accept_waveform(16000, heard)
    by.decode_stream(stream)
    found = [int(token[1:]) // 2 / scale - 20 for token in stream.result.tokens]
    mel = DefaultFrontend(**FRONTEND).logmel.melmat
    ours = fbank(torch.from_numpy(heard).double(), mel)[:, band]
    torch.testing.assert_close(
        torch.tensor(found).double(), ours, atol=0.6 / scale, rtol=0
    )


@pytest.mark.parametrize("route", ["by_waveform", "by_fbank"])
def test_input_of_any_length_has_a_text(route, request):
    by = recognizer(request.getfixturevalue(route)[2])
    for samples in (0, 1, 79, 80, 700, 1600):
        decoded(by, audio(1)[:samples])  # the process would end with an error
    assert decoded(by, audio(20)) != [""]


# Only these two packages, numpy's and the runtime's, can be imported.
ISOLATED = """
import sys
sys.path.append(sys.argv[1])
for name in ("torch", "espnet2", "espnet_l0prune", "onnxruntime"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name)
exec(open("example.py").read())
"""


@pytest.mark.parametrize("route", ["by_waveform", "by_fbank"])
def test_the_folder_alone_decodes(route, request, tmp_path):
    """With its README's Python, sherpa-onnx and numpy, in an empty home."""
    _, _, folder = request.getfixturevalue(route)
    packages, home = tmp_path / "packages", tmp_path / "home"
    packages.mkdir()
    shutil.copytree(folder, home)
    installed = Path(sherpa_onnx.__file__).parents[1]
    for package in installed.glob("*"):
        if package.name.split(".")[0] in ("numpy", "sherpa_onnx"):
            (packages / package.name).symlink_to(package)
    text = (home / "README.md").read_text()
    (home / "example.py").write_text(re.search(r"```python\n(.*?)```", text, re.S)[1])
    with wave.open(str(home / "speech.wav"), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", None))
        first = (32768 * WAVES[0]).astype(np.int16)
        file.writeframes(np.stack([first, 0 * first], 1).tobytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ISOLATED, str(packages)],
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    heard = (first / np.float32(32768)).astype(np.float32)
    assert done.stdout.strip() == decoded(recognizer(folder), heard)[0].strip() != ""


def answers(folder: Path, samples: np.ndarray) -> torch.Tensor:
    """The log-probabilities for a waveform, by onnxruntime."""
    graph = OnnxGraph(str(folder / "model.onnx"))
    wave = torch.from_numpy(samples / samples.std())
    if "speech" in graph.shapes:
        return graph(speech=wave[None])[0]
    feats = fbank(wave.double(), DefaultFrontend(**FRONTEND).logmel.melmat).float()
    return graph(x=feats[None], x_length=torch.tensor([len(feats)]))[0]


@pytest.mark.parametrize("route", ["by_waveform", "by_fbank"])
def test_int8(route, request, tmp_path):
    """The runtime loads it, and on audio that swells and fades it is nearly the same:
    the front end, whose powers span many magnitudes, stays in float."""
    _, experiment, folder = request.getfixturevalue(route)
    out = tmp_path / "int8"
    options = ["--out", str(out), "--checkpoint", "model.pth", "--int8"]
    assert main(["export", "sherpa", str(experiment), *options]) == 0
    assert "int8" in (out / "README.md").read_text()
    assert decoded(recognizer(out), WAVES[0])[0]
    for samples in WAVES:
        apart = divergence(answers(folder, samples), answers(out, samples), True)
        assert 0 < apart <= sherpa.INT8_TOLERANCE


def test_a_quantized_graph_that_is_too_far_off_is_refused(by_fbank, monkeypatch, caplog):
    _, experiment, _ = by_fbank
    monkeypatch.setattr(sherpa, "INT8_TOLERANCE", 0.0)
    out = experiment.with_name("refused")
    options = ["--out", str(out), "--checkpoint", "model.pth", "--int8"]
    assert main(["export", "sherpa", str(experiment), *options]) != 0
    assert not out.exists()


REFUSED = [
    ({"normalize": None, "frontend_conf": {"hop_length": 128}}, "it takes hop_length"),
    ({"normalize": None, "frontend_conf": {"win_length": 256}}, "it takes win_length"),
    ({"normalize": None, "frontend_conf": {"n_mels": 40}}, "it takes n_mels"),
    ({"normalize": "utterance_mvn", "frontend_conf": {"fs": 8000}}, "8000 samples"),
    ({"normalize": "utterance_mvn", "model_conf": {"ctc_weight": 0.0}}, "no CTC"),
    (
        {"normalize": "utterance_mvn", "normalize_conf": {"norm_means": False}},
        "it takes normalize: global_mvn",
    ),
    ({"normalize": None, "frontend": None, "input_size": 80}, "the front end"),
    (
        {
            "normalize": "utterance_mvn",
            "preencoder": "linear",
            "preencoder_conf": {"input_size": 80, "output_size": 80},
        },
        "there is a preencoder",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_models_that_it_cannot_run(changes, message):
    conf = {**HEARD, "encoder": "conformer", "model": "espnet", **changes}
    if conf["frontend"]:
        conf["frontend_conf"] = {**FRONTEND, **changes.get("frontend_conf", {})}
    else:
        conf["frontend_conf"] = {}
    model = ASRTask.build_model(arguments(**conf))
    with pytest.raises(ValueError, match=message):
        sherpa.route_of(model)


def test_without_normalization_features_are_taken():
    conf = {**HEARD, "encoder": "conformer", "model": "espnet", "normalize": None}
    route = sherpa.route_of(ASRTask.build_model(arguments(**conf)))
    assert isinstance(route, sherpa.FbankRoute)


def test_tokens():
    bpe = tokens_of(["<blank>", "<unk>", "\u2581THE", "S", "<sos/eos>"], "bpe")
    assert bpe == "<blk> 0\n<unk> 1\n\u2581THE 2\nS 3\n<sos/eos> 4\n"
    chars = tokens_of(["<blank>", "A", "<space>"], "char")
    assert chars == "<blk> 0\nA 1\n\u2581 2\n"
    assert tokens_of(["<blank>", "ONE"], "word") == "<blk> 0\n\u2581ONE 1\n"
    for token in ("SIL", "</s>", "<eps>", "A B", ""):
        with pytest.raises(ValueError, match="token_list has the token"):
            tokens_of(["<blank>", token], "bpe")
    with pytest.raises(ValueError, match="token_type is 'hugging_face'"):
        tokens_of(["<blank>", "A"], "hugging_face")


def test_a_folder_of_something_else_stays(by_fbank, tmp_path, capsys):
    _, experiment, _ = by_fbank
    (tmp_path / "notes.txt").write_text("mine")
    options = ["--out", str(tmp_path), "--checkpoint", "model.pth", "--force"]
    assert main(["export", "sherpa", str(experiment), *options]) != 0
    assert "no earlier export" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("longest", [None, 9])
@pytest.mark.parametrize(
    ("shape", "dimension"), [(None, -1), ((3, 9), 1), ((3, 9, 5), 1), ((3, 5, 9), 2)]
)
def test_masks_are_espnets(longest, shape, dimension):
    lengths = torch.tensor([7, 9, 1])
    xs = None if shape is None else torch.zeros(shape)
    if xs is not None and longest is not None:
        return  # ESPnet takes one of them
    expected = make_pad_mask(lengths, xs, dimension, longest)
    assert torch.equal(padding_mask(lengths, xs, dimension, longest), expected)
    with linear_masks():
        assert torch.equal(make_pad_mask(lengths, xs, dimension, longest), expected)


def test_no_part_of_a_graph_has_the_square_of_all_frames(by_fbank, tmp_path):
    """Only the attention's scores are of a square, after the frames were subsampled."""
    write_graph(sherpa.RecognizerGraph(exportable(by_fbank[0])), tmp_path / "one.onnx")
    values = onnx.load(tmp_path / "one.onnx").graph.value_info
    sizes = [[d.dim_param for d in v.type.tensor_type.shape.dim] for v in values]
    squares = [s for s in sizes if sum(map(bool, s)) > 1]  # other sizes have no name
    assert squares
    assert all("//" in d for s in squares for d in s if d)
