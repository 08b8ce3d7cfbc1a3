"""What frames become that skip blocks, and what the others do, at all thresholds."""

import json
import logging

import numpy as np
import pytest
import soundfile
import torch
from blank_skipping import BlankSkipping, main
from common import RATE, ROOT
from conditions import CLEAN, count_errors, load
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import ENCODER, arguments, disturb_

BLOCK = 2
TRAINED = {"interctc_layer_idx": [1, BLOCK], "num_blocks": 4}
BRANCHES = {"cgmlp_linear_units": 12, "cgmlp_conv_kernel": 5, "merge_conv_kernel": 5}
SIZES = {k: ENCODER[k] for k in ("output_size", "attention_heads", "linear_units")}
KINDS = {
    "conformer": ("conformer", ENCODER),
    "conformer, older positions": ("conformer", {**ENCODER, "rel_pos_type": "legacy"}),
    "conformer, norms behind": ("conformer", {**ENCODER, "normalize_before": False}),
    "transformer": ("transformer", SIZES),
    "e_branchformer": ("e_branchformer", {**SIZES, **BRANCHES}),
}
WEIGHED = {"ctc_weight": 0.3, "interctc_weight": 0.3}
HEARD = {"frontend": "default", "input_size": None}


def made(kind: str):
    """A model of ESPnet's with intermediate CTC."""
    args = arguments(model="espnet", model_conf=WEIGHED)
    args.encoder, conf = KINDS[kind]
    args.encoder_conf = {**conf, **TRAINED}
    torch.manual_seed(0)
    net = ASRTask.build_model(args).eval()
    disturb_(net)
    return net


@torch.no_grad()
def encoded(net):
    """The output and the intermediate one, (frames, size) each, and the length."""
    torch.manual_seed(1)
    feats = torch.randn(1, 90, 20)
    (out, between), lengths, _ = net.encoder(feats, torch.tensor([90]))
    return out[0], dict(between)[BLOCK][0], int(lengths)


def blank_of(net, hidden):
    return net.ctc.softmax(hidden[None])[0, :, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_skips_beyond_1(kind):
    net = made(kind)
    expected, between, length = encoded(net)
    hooks = BlankSkipping(net, BLOCK, threshold=1.0)
    found, same, n = encoded(net)
    assert torch.equal(found, expected)
    assert torch.equal(same, between)
    assert n == length == hooks.frames == len(found)
    assert hooks.skipped == 0


@pytest.mark.parametrize("kind", KINDS)
def test_all_frames_that_skip_leave_behind_the_block(kind):
    net = made(kind)
    _, between, length = encoded(net)
    hooks = BlankSkipping(net, BLOCK, threshold=0.0)
    found, _, n = encoded(net)
    assert torch.equal(found, between)
    assert n == length == hooks.frames == hooks.skipped


@pytest.mark.parametrize("kind", KINDS)
def test_the_others_go_on_as_if_they_stood_side_by_side(kind):
    """Through ESPnet's own blocks, with the positions of so many frames."""
    net = made(kind)
    whole, between, _ = encoded(net)
    blank = blank_of(net, between)
    threshold = float(blank.median())
    on = blank <= threshold
    kept, encoder = [], net.encoder
    hook = encoder.encoders[BLOCK - 1].register_forward_hook(
        lambda layer, args, output: kept.append(output[0])
    )
    encoded(net)
    hook.remove()
    stream = kept[0] if isinstance(kept[0], tuple) else (kept[0],)
    x = stream[0][:, on]
    if len(stream) > 1:
        *_, positional = encoder.embed.out if hasattr(encoder.embed, "out") else ()
        x = x, positional(x)[1]
    masks = torch.ones(1, 1, int(on.sum()), dtype=torch.bool)
    with torch.no_grad():
        for layer in encoder.encoders[BLOCK:]:
            x, masks = layer(x, masks)
        x = x[0] if isinstance(x, tuple) else x
        late = encoder.after_norm(x) if hasattr(encoder, "after_norm") else x
    hooks = BlankSkipping(net, BLOCK, threshold)
    found, _, n = encoded(net)
    assert n == len(found) == len(whole)
    assert 0 < hooks.skipped == int((~on).sum()) < n
    assert torch.equal(found[~on], between[~on])
    torch.testing.assert_close(found[on], late[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[on], whole[on], atol=1e-3)


@pytest.mark.parametrize("weight", [0.3, 0.0])
def test_a_block_that_no_ctc_reads_is_refused(weight):
    net = made("conformer")
    net.interctc_weight = weight
    with pytest.raises(ValueError, match="the CTC has learnt to read no other block"):
        BlankSkipping(net, 3 if weight else BLOCK, 0.9)


def test_several_utterances_at_once_are_refused():
    net = made("conformer")
    BlankSkipping(net, BLOCK, 0.9)
    with pytest.raises(ValueError, match="the batch has 2 utterances; expected one"):
        net.encoder(torch.randn(2, 90, 20), torch.tensor([90, 80]))


@pytest.fixture
def spoken(tmp_path):
    """Two utterances of noise, and what they say."""
    noise = 0.1 * np.random.default_rng(0).normal(size=(2, RATE))
    for name, wave in zip("ab", noise, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\nb {tmp_path}/b.wav\n")
    (tmp_path / "text").write_text("a A B\nb C\n")
    save_experiment(tmp_path / "dense", **HEARD, encoder_conf=TRAINED, model_conf=WEIGHED)
    return tmp_path


def test_a_table_of_thresholds(spoken):
    file, threads = spoken / "found.json", torch.get_num_threads()
    words = ["--model", f"{spoken}/dense", "--data", f"{spoken}", "--block", f"{BLOCK}"]
    words += ["--thresholds", "1", "0", "--rounds", "1", "--json", f"{file}"]
    try:
        main(words)
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
    whole, none, every = json.loads(file.read_text())["rows"]
    names = [row["frames that skip"] for row in (whole, none, every)]
    assert names == ["no skipping", "blank > 1", "blank > 0"]
    shares = [row["share of frames (%)"] for row in (whole, none, every)]
    assert shares == [0, 0, 100]
    assert [whole[rate] for rate in ("WER (%)", "CER (%)")] == [
        none[rate] for rate in ("WER (%)", "CER (%)")
    ]
    assert whole["encoder, of the whole (%)"] == 100
    assert every["encoder, RTF"] > 0


def test_a_recognizer_with_intermediate_ctc_is_heard(spoken):
    """It returns more than other ones."""
    speech2text = load(spoken / "dense", ROOT / "studies/ctc.yaml")
    wave, _ = soundfile.read(spoken / "a.wav", dtype="float32")
    hypotheses, between = speech2text(wave)
    assert between.keys() == {1, BLOCK}
    text = hypotheses[0][0]
    found = count_errors({"dense": speech2text}, [wave], [f"{text}A"], CLEAN)
    assert found["dense"] == {"errors": [1], "letter errors": [1]}
