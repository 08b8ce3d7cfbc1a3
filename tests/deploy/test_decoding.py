"""Decoding is timed as a whole, and its parts add up."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.decoding import recognizer, time_decoding
from espnet_l0prune.testing.experiments import save_experiment

HEARD = {"frontend": "default", "input_size": None, "encoder_conf": {"num_blocks": 1}}
RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("decoding")
    save_experiment(made / "both", **HEARD)
    save_experiment(made / "attention", model_conf={"ctc_weight": 0.0}, **HEARD)
    rng = np.random.default_rng(0)
    for name, length in (("a", 9000), ("b", 12_000)):
        soundfile.write(made / f"{name}.wav", 0.1 * rng.standard_normal(length), RATE)
    soundfile.write(made / "slow.wav", np.zeros(8000), 8000)
    soundfile.write(made / "stereo.wav", np.zeros((8000, 2)), RATE)
    return made


def test_parts_of_decoding(folder, capsys):
    waves = [str(folder / f"{name}.wav") for name in "ab"]
    command = ["bench", *(str(folder / x) for x in ("both", "attention"))]
    more = [
        "--decode",
        *waves,
        "--rounds",
        "1",
        "--beam_size",
        "2",
        "--ctc_weight",
        "0.0",
    ]
    assert main([*command, *more]) == 0, capsys.readouterr().err
    assert "the beam search takes up to " in capsys.readouterr().out
    assert main([*command, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] == pytest.approx(21_000 / RATE)
    both, attention = found["rows"]
    for row in (both, attention):
        parts = row["features"] + row["encoder"] + row["search"]
        assert row["joint"] == pytest.approx(parts)
        assert min(row["features"], row["encoder"], row["search"]) > 0
    assert both["greedy"] == pytest.approx(
        both["features"] + both["encoder"] + both["ctc"]
    )
    assert attention["greedy"] is attention["ctc"] is None
    assert both["speed_up"] == 1


def test_a_recognizer_is_left_as_it_was(folder):
    files = [folder / "both" / x for x in ("config.yaml", "model.pth")]
    options = {"beam_size": 2, "ctc_weight": 0.3}
    one, other = recognizer(*files, options), Speech2Text(*map(str, files), **options)
    wave = torch.randn(9000, generator=torch.manual_seed(0))
    threads = torch.get_num_threads()
    time_decoding({"one": one}, [wave], rounds=1)
    assert torch.get_num_threads() == threads
    assert one(wave)[0][:3] == other(wave)[0][:3]
    assert "encode" not in vars(one.asr_model)


@pytest.mark.parametrize(
    ("experiment", "audio", "message"),
    [
        ("both", "slow.wav", "has 8000 samples a second and 1 dimensions; expected one"),
        ("both", "stereo.wav", "and 2 dimensions; expected one channel of 16000"),
        ("both", "none.wav", "none.wav cannot be read"),
        ("st", "a.wav", "is of ESPnet's st task; expected one of the asr task"),
    ],
)
def test_what_cannot_be_decoded(experiment, audio, message, folder, capsys):
    other = folder / "st"
    other.mkdir(exist_ok=True)
    config = yaml.safe_load((folder / "both/config.yaml").read_text())
    (other / "config.yaml").write_text(
        yaml.safe_dump(config | {"extra_asr_decoder": None})
    )
    command = ["bench", str(folder / experiment), "--decode", str(folder / audio)]
    assert main(command) == 1
    assert message in capsys.readouterr().err
