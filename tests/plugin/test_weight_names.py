"""Weights are read by the names of any ESPnet, and kept by those that each one reads."""

import pytest
import torch
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.weight_names import portable
from espnet_l0prune.testing.models import ENCODER, arguments

SIZES = {key: ENCODER[key] for key in ("output_size", "linear_units")}
KINDS = {
    "gated": {},
    "stock": {"encoder": "conformer", "model": "espnet"},
    "weights in its positions": {
        "encoder": "l0_transformer",
        "encoder_conf": {**SIZES, "input_layer": "conv1d2", "pos_enc_layer_type": "conv"},
    },
}


@pytest.fixture(params=KINDS)
def make(request):
    """Builds a model with weights of a seed."""
    changes = dict(KINDS[request.param])

    def build(seed: int):
        args = arguments()
        vars(args).update(changes)
        torch.manual_seed(seed)
        return build_model(args)

    return build


def by_name(model, release: str) -> dict[str, torch.Tensor]:
    """Its state as ESPnet up to 202511 names it, or as from 202609 on."""
    found = {}
    for name, value in portable(model).items():
        if release == "202611":
            name = name.replace("encoder.embed.out.0.", "encoder.embed.out.")
            name = name.replace("encoder.embed.out.1.", "encoder.embed.pos_enc.")
        found[name] = value
    return found


def test_all_are_named_as_in_202511(make):
    model = make(0)
    names = [name for name in portable(model) if name.startswith("encoder.embed.out")]
    assert {"encoder.embed.out.0.weight", "encoder.embed.out.0.bias"} <= {*names}
    assert len(portable(model)) == len(model.state_dict())
    assert all("pos_enc" not in name for name in portable(model))
    again = portable(model, by_name(model, "202611"))
    assert again.keys() == portable(model).keys()


@pytest.mark.parametrize("release", ["202511", "202611"])
@pytest.mark.parametrize("way", ["load", "init_param"])
def test_names_of_any_release_are_read(make, release, way, tmp_path):
    trained, model = make(1), make(2)
    state = by_name(trained, release)
    if way == "load":
        model.load_state_dict(state)
    else:  # ESPnet's, which puts what it reads beside what is there
        torch.save(state, tmp_path / "dense.pth")
        load_pretrained_model(str(tmp_path / "dense.pth"), model, False)
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("layer", ["conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8"])
def test_plain_espnet_reads_what_is_kept(layer):
    """All of it, by the installed release's own loading."""
    changes = {"encoder": "conformer", "model": "espnet", "optim": "adamw"}
    args = arguments(**changes, encoder_conf={"input_layer": layer})
    args.encoder_conf.pop("units", None)
    torch.manual_seed(0)
    kept = portable(ASRTask.build_model(args))
    torch.manual_seed(1)
    plain = ASRTask.build_model(args)
    plain.load_state_dict(kept, strict=True)
    again = portable(plain)
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], value) for name, value in kept.items())
    # the other release's names are read by ours, and kept as these
    other = {
        name.replace("embed.out.0.", "embed.out.")
        if "embed.out.0." in name
        else name.replace("embed.out.", "embed.out.0."): value
        for name, value in kept.items()
    }
    assert portable(plain, other).keys() == kept.keys()
    ours = build_model(args)
    ours.load_state_dict(other)
    assert all(torch.equal(portable(ours)[name], value) for name, value in kept.items())
