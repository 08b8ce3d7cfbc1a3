"""The streaming encoders: whole utterances, and block by block as one speaks."""

import pytest
import torch
import yaml
from espnet2.asr.encoder.contextual_block_conformer_encoder import (
    ContextualBlockConformerEncoder,
)
from espnet2.asr.encoder.contextual_block_transformer_encoder import (
    ContextualBlockTransformerEncoder,
)
from espnet2.bin.asr_inference import Speech2Text
from espnet2.bin.asr_inference_streaming import Speech2TextStreaming
from espnet2.tasks.asr import ASRTask
from espnet_model_zoo.downloader import ModelDownloader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_l0prune.cli import main
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.deploy.verify import probe, probe_of
from espnet_l0prune.networks.espnet_modules import TooShortUttError
from espnet_l0prune.networks.streaming import in_time
from espnet_l0prune.plugin.building import build_model, note_input_
from espnet_l0prune.plugin.trace import record
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.runs import CONFIG
from espnet_l0prune.testing.updates import batch
from tests.deploy.test_adopt import STOCK, cut_sparsity, follow, make_speech
from tests.plugin.networks import (
    KINDS,
    STREAMING,
    confs,
    copy_of,
    draw_plan,
    make,
    prunable,
    relative,
)

FRAMES = 60
BLOCKS = {"block_size": 8, "hop_size": 4, "look_ahead": 2}
CONF = {"output_size": 16, "attention_heads": 4, "linear_units": 12, "num_blocks": 2}
MACARON = {"macaron_style": True, "cnn_module_kernel": 3}
OPTIONS = {
    "streaming_conformer": CONF | MACARON | BLOCKS,
    "streaming_transformer": CONF | BLOCKS,
}
ESPNET = {
    "streaming_conformer": ContextualBlockConformerEncoder,
    "streaming_transformer": ContextualBlockTransformerEncoder,
}


@torch.no_grad()
def stream(network, steps: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """What an encoder says to so many frames at a time, (time, size)."""
    weight = next(network.parameters())
    feats, _ = probe(20, (sum(steps),), seed)
    heard, states = [], None
    for i, part in enumerate(feats.to(weight.dtype).split(steps, 1)):
        length = torch.tensor([part.size(1)])
        final = i == len(steps) - 1
        out, _, states = network(part, length, states, is_final=final, infer_mode=True)
        heard.append(out[0])
    return torch.cat(heard)


@pytest.mark.parametrize("kind", STREAMING)
@settings(suppress_health_check=list(HealthCheck), max_examples=15)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_masked_equals_cut_as_one_speaks(kind, data, seed):
    conf = data.draw(confs(kind).filter(lambda conf: conf["block_size"]))
    network = make(kind, conf, prunable(kind, conf), seed)
    decide_(network.sites(), draw_plan(data, network))
    small = copy_of(network)
    cut_(small, small.sites(), plan_of(network.sites()))
    for steps in ((FRAMES,), (24, 30, 46), (90,) * 3):
        assert relative(stream(network, steps), stream(small, steps)) <= 1e-10


@pytest.mark.parametrize("kind", STREAMING)
def test_open_gates_are_stock_bit_for_bit_as_one_speaks(kind):
    conf = OPTIONS[kind]
    torch.manual_seed(0)
    stock = ESPNET[kind](20, **conf).eval()
    ours = KINDS[kind](20, **conf, units=prunable(kind, conf)).eval()
    ours.load_state_dict(stock.state_dict(), strict=False)
    for steps in ((FRAMES,), (30, 30, 40)):
        assert torch.equal(stream(stock, steps), stream(ours, steps))


@pytest.mark.parametrize("kind", STREAMING)
@pytest.mark.parametrize("frames", [30, 33, 60, 100])
def test_compared_frames_are_those_of_the_output(kind, frames):
    """What the last block says of each frame, normed, is the encoder's output."""
    name = f"l0_contextual_block_{kind.removeprefix('streaming_')}"
    args = arguments(encoder=name)
    args.encoder_conf = OPTIONS[kind]
    net = ASRTask.build_model(args).eval()
    feats, lengths = probe(20, (frames, frames - 9))
    with record(net) as trace:
        net.encoder(feats.float(), lengths)
    last = trace.blocks[max(trace.blocks)]
    normed = net.encoder.after_norm(last)[:, : trace.encoder_out.size(1)]
    assert torch.allclose(normed, trace.encoder_out, atol=1e-6)


def test_frames_that_are_context_alone_are_left_out():
    network = KINDS["streaming_transformer"](20, **OPTIONS["streaming_transformer"])
    # the frames 0 to 7, and 4 to 11, between context vectors
    blocks = torch.tensor([[-1, *range(8), -1], [-1, *range(4, 12), -1]])
    ordered = in_time(network, blocks[None, :, :, None])
    assert ordered.flatten().tolist() == [*range(12)]


def student(tmp_path, layer_input: str, **teachers: int):
    """A network that begins as its teacher, but for some options of the teacher's."""
    dropout = dict.fromkeys(("dropout_rate", "positional_dropout_rate"), 0.0)
    conf = {**OPTIONS["streaming_transformer"], **dropout}
    args = arguments(encoder="contextual_block_transformer", model="espnet")
    args.encoder_conf = {**conf, **teachers}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(ASRTask.build_model(args).state_dict(), tmp_path / "model.pth")
    args.encoder, args.model = f"l0_{args.encoder}", "l0_distill"
    args.encoder_conf = conf
    args.model_conf = {
        "layer_input": layer_input,
        "teacher_config": str(tmp_path / "config.yaml"),
        "teacher_model_file": str(tmp_path / "model.pth"),
    }
    net = ASRTask.build_model(args)
    note_input_(net, args)
    net.load_teacher_(torch.optim.SGD(net.parameters()))
    net.load_state_dict(net.teacher.model.state_dict(), strict=False)
    return net


@pytest.mark.parametrize("layer_input", ["student", "teacher"])
@pytest.mark.parametrize("blocks", [{"block_size": 0}, {"block_size": 16, "hop_size": 7}])
def test_a_teacher_may_read_other_blocks_of_frames(layer_input, blocks, tmp_path):
    net = student(tmp_path, layer_input, **blocks)
    with torch.no_grad():
        net.encoder.encoders[0].feed_forward.w_2.bias += 1
    loss, stats, _ = net(**batch())
    assert 1e-3 < float(stats["loss_layer"]) < 100
    loss.backward()


@pytest.mark.parametrize("layer_input", ["student", "teacher"])
def test_the_dense_network_is_no_distance_from_its_teacher(layer_input, tmp_path):
    net = student(tmp_path, layer_input)
    assert float(net(**batch())[1]["loss_layer"]) < 1e-9
    with torch.no_grad():
        net.encoder.encoders[0].feed_forward.w_2.bias += 1
    loss, stats, _ = net(**batch())
    assert float(stats["loss_layer"]) > 1e-3
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(("layer", "least"), [("conv2d", 7), ("conv2d6", 11)])
def test_what_is_too_short_is_refused_as_by_other_encoders(layer, least):
    """By ours, and by a plain one that we have built, as a teacher is."""
    args = arguments(encoder="contextual_block_transformer", model="espnet")
    args.encoder_conf = OPTIONS["streaming_transformer"] | {"input_layer": layer}
    ours = KINDS["streaming_transformer"](20, **args.encoder_conf)
    for encoder in (ours, build_model(args).encoder):
        encoder(torch.zeros(1, least, 20), torch.tensor([least]))
        with pytest.raises(TooShortUttError, match=f"needs at least {least} frames"):
            encoder(torch.zeros(1, least - 1, 20), torch.tensor([least - 1]))


@pytest.mark.parametrize("layer", ["conv2d", "conv2d6", "conv2d8", "linear"])
def test_a_cut_is_verified_on_several_blocks_of_frames(layer):
    conf = {**CONF, "input_layer": layer}  # with ESPnet's own sizes of blocks
    encoder = KINDS["streaming_transformer"](20, **conf)
    seen = []
    hook = lambda _, args, output: seen.append(output[0].shape)  # noqa: E731
    encoder.encoders[0].register_forward_hook(hook)
    feats, lengths = probe_of(encoder)
    encoder(feats.float(), lengths)
    assert len(seen[0]) == 4
    assert seen[0][1] >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": ["blocks"]}, "blocks hand on context vectors"),
        ({"units": ["width"]}, "hand on context vectors, which have all features"),
        ({"random_features": 8}, "expected an encoder that is not a streaming one"),
    ],
)
def test_what_would_break_the_context(change, message):
    with pytest.raises(ValueError, match=message):
        KINDS["streaming_conformer"](20, **OPTIONS["streaming_conformer"], **change)


def decoded(config, weights, speech) -> tuple[str, str]:
    """What a model makes of audio: as a whole, and as one speaks."""
    options = {"beam_size": 2, "ctc_weight": 0.5, "maxlenratio": -6}
    whole = Speech2Text(config, weights, **options)(speech)[0][0]
    streaming = Speech2TextStreaming(config, weights, **options)
    parts = speech.split(2000)
    for i, part in enumerate(parts):
        ended = i == len(parts) - 1
        found = streaming(part, is_final=ended)
    return whole, found[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", STREAMING)
def test_from_a_stock_experiment_to_a_text(kind, tmp_path, capsys):
    make_speech(tmp_path)
    conf = {
        "input_size": None,
        "frontend": "default",
        "frontend_conf": {"fs": 16000, "n_fft": 256, "hop_length": 128, "n_mels": 20},
        "encoder": f"contextual_block_{kind.removeprefix('streaming_')}",
        "encoder_conf": OPTIONS[kind],
    }
    config = {**CONFIG, **STOCK, **conf}
    for part in ("train", "valid"):
        config[f"{part}_data_path_and_name_and_type"] = [
            [f"{tmp_path}/wav.scp", "speech", "sound"],
            [f"{tmp_path}/text_ctc", "text", "text"],
        ]
        config[f"{part}_shape_file"] = [f"{tmp_path}/shape"]
    file, dense, out = (tmp_path / name for name in ("dense.yaml", "dense", "l0"))
    file.write_text(yaml.safe_dump(config))
    ASRTask.main(cmd=["--config", str(file), "--output_dir", str(dense)])
    words = ["--out", str(out), "--params", "0.4", "--epochs", "6"]
    assert main(["adopt", str(dense), *words, "--finetune_epochs", "1"]) == 0
    commands = capsys.readouterr().out.split("Next:\n")[1].splitlines()
    follow(commands, "asr")
    assert 0.4 <= cut_sparsity(out) < 0.5
    finetuned, speech = out / "finetuned", torch.randn(9000)
    weights = finetuned / "valid.acc.ave.pth"
    texts = decoded(finetuned / "config.yaml", weights, speech)
    # the masked network, too, as it was before the cut
    pruned, cut = out / "pruned/latest.pth", out / "cut/model.pth"
    masked = decoded(out / "pruned/config.yaml", pruned, speech)
    assert masked == decoded(out / "cut/config.yaml", cut, speech)
    archive = str(tmp_path / "packed.zip")
    assert main(["export", "onnx", str(finetuned), "--out", archive]) == 1
    assert "hands context vectors from block to block" in capsys.readouterr().err
    for form in ("plugin", "stock"):
        command = ["export", form, str(finetuned), "--out", archive, "--force"]
        assert main(command) == 0
        files = ModelDownloader(tmp_path / form).download_and_unpack(archive)
        again = files["asr_train_config"], files["asr_model_file"]
        assert decoded(*again, speech) == texts
