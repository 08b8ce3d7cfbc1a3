"""Runs of ESPnet's own training command: interrupted, damaged, resumed."""

import zipfile

import numpy as np
import pytest
import torch
import yaml
from builders import ENCODER, TOKENS
from espnet2.tasks.asr import ASRTask
from espnet2.train import trainer as espnet_trainer

from espnet_l0prune.plugin.trainer import PREVIOUS, is_whole

UTTERANCES = 12
CONFIG = {
    "token_type": "char",
    "token_list": TOKENS,
    "input_size": 20,
    "frontend": None,
    "normalize": None,
    "num_workers": 0,
    "num_att_plot": 0,
    "use_tensorboard": False,
    "use_matplotlib": False,
    "keep_nbest_models": 1,
    "batch_type": "unsorted",
    "batch_size": 4,
    "max_epoch": 6,
    "encoder": "l0_conformer",
    "encoder_conf": ENCODER,
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 1},
    "model": "l0_distill",
    "model_conf": {"ctc_weight": 0.3},
    "optim": "l0_adamw",
    "optim_conf": {"lr": 1e-3, "gate_lr": 0.3},
    "sparsity_constraint": "nupi",
    "sparsity_constraint_conf": {"multiplier_lr": 50.0, "kp": 1.0},
    "sparsity_scheduler": "cubic",
    "sparsity_scheduler_conf": {
        "target": 0.3,
        "warmup_steps": 2,
        "ramp_steps": 6,
        "hold_steps": 4,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Random features and texts, as ESPnet's command takes them."""
    folder = tmp_path_factory.mktemp("data")
    rng, feats, texts, shapes = np.random.default_rng(0), [], [], []
    for i in range(UTTERANCES):
        frames = int(rng.integers(50, 80))
        np.save(folder / f"{i}.npy", rng.standard_normal((frames, 20), np.float32))
        feats.append(f"u{i:02} {folder}/{i}.npy")
        texts.append(f"u{i:02} {''.join(rng.choice(list('ABCDEFGH'), 5))}")
        shapes.append(f"u{i:02} {frames},20")
    for name, lines in (("feats", feats), ("text", texts), ("shape", shapes)):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def run(data, out, **changes):
    """`python -m espnet2.bin.asr_train`, in this process."""
    conf = {**CONFIG, **changes}
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(conf))
    command = ["--config", str(file), "--output_dir", str(out), "--resume", "true"]
    for part in ("train", "valid"):
        command += [
            *(f"--{part}_data_path_and_name_and_type", f"{data}/feats,speech,npy"),
            *(f"--{part}_data_path_and_name_and_type", f"{data}/text,text,text"),
            *(f"--{part}_shape_file", f"{data}/shape"),
        ]
    ASRTask.main(cmd=command)


class Killed(BaseException):
    """As by a signal: nothing in ESPnet or here catches it."""


def run_killed(data, out, name: str, times: int = 1, **changes) -> None:
    """Until a file is saved for the nth time: half of it, and then nothing more."""
    save, left = torch.save, [times]

    def half(state, path, *args, **kwargs):
        save(state, path, *args, **kwargs)
        left[0] -= path.name == name
        if not left[0]:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(espnet_trainer.torch, "save", half)
        with pytest.raises(Killed):
            run(data, out, **changes)


def final(out):
    return torch.load(out / "checkpoint.pth", weights_only=False)


def assert_same(one, two) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            if key not in ("time", "total_count"):
                assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "exp"
    run(data, out)
    return final(out)


@pytest.mark.parametrize("epoch", [1, 3, 5])
@pytest.mark.parametrize("name", ["checkpoint.pth", "{}epoch.pth"])
def test_killed_while_saving(name, epoch, data, uninterrupted, tmp_path):
    out, name = tmp_path / "exp", name.format(epoch)
    run_killed(data, out, name, times=epoch if name == "checkpoint.pth" else 1)
    assert not is_whole(out / name)
    if epoch == 1 and name == "checkpoint.pth":
        with pytest.raises(RuntimeError, match=r"is damaged and there is no whole"):
            run(data, out)
        (out / name).unlink()
    run(data, out)
    found = final(out)
    assert_same(found["model"], uninterrupted["model"])
    assert_same(found["optimizers"], uninterrupted["optimizers"])
    for e in (5, 6):  # the best and the last that ESPnet keeps
        path = out / f"{e}epoch.pth"
        assert is_whole(path) or not path.exists()
    assert is_whole(out / "latest.pth")


def test_a_flipped_bit_is_a_damaged_checkpoint(data, uninterrupted, tmp_path, caplog):
    out = tmp_path / "exp"
    run(data, out)
    path = out / "checkpoint.pth"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda i: i.file_size)
        place = largest.header_offset + largest.file_size // 2 + 200
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert not is_whole(path)
    run(data, out)
    assert f"resuming from {out / PREVIOUS}, one epoch earlier" in caplog.text
    assert_same(final(out)["model"], uninterrupted["model"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity_constraint": "inequality"}, "was NuPIConstraint, is Inequality"),
        ({"sparsity_scheduler": "linear"}, "was CubicSparsityScheduler, is Linear"),
        (
            {"sparsity_scheduler_conf": {"target": 0.3, "hold_steps": 5}},
            "warmup_steps was 2, is 1000; ramp_steps was 6, is 10000; hold_steps was 4",
        ),
    ],
)
def test_a_resume_with_other_settings(changes, message, data, tmp_path):
    out = tmp_path / "exp"
    run(data, out)
    conf = {"sparsity_constraint_conf": {}, **changes}
    with pytest.raises(ValueError, match=message):
        run(data, out, max_epoch=7, **conf)


def test_a_schedule_longer_than_the_run(data, tmp_path):
    conf = {**CONFIG["sparsity_scheduler_conf"], "ramp_steps": 20}
    message = (
        r"freeze after 26 updates .* ends after 18: 6 epochs of 3. Raise max_epoch to "
        r"10, or shorten .* to 15 in all"
    )
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "exp", sparsity_scheduler_conf=conf)


def test_a_schedule_in_epochs(data, uninterrupted, tmp_path):
    """The same phases, so the same run."""
    lengths = {"warmup_steps": 2 / 3, "ramp_steps": 2, "hold_steps": 4 / 3}
    conf = {"target": 0.3, "in_epochs": True, **lengths}
    run_killed(data, tmp_path / "exp", "3epoch.pth", sparsity_scheduler_conf=conf)
    run(data, tmp_path / "exp", sparsity_scheduler_conf=conf)
    found = final(tmp_path / "exp")
    assert_same(found["model"], uninterrupted["model"])
    assert found["optimizers"][0]["param_groups"][1]["scale"] == 3
