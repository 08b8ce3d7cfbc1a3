"""A student that hears what its teacher does not."""

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.plugin.building import note_input_
from espnet_l0prune.plugin.trace import record
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments, model

AUDIO = {
    "input_size": None,
    "frontend": "default",
    "frontend_conf": {"fs": 8000, "n_fft": 256, "hop_length": 80, "n_mels": 20},
    "specaug": "specaug",
    "specaug_conf": {"time_mask_width_range": [0, 9]},  # and time warping
    "normalize": "utterance_mvn",
}


def student(folder, probability: float, **changes):
    """With its teacher, which is the same network, and in training mode."""
    save_experiment(folder, **AUDIO)
    files = {"teacher_config": "config.yaml", "teacher_model_file": "model.pth"}
    conf = {name: str(folder / file) for name, file in files.items()}
    conf["disturb_probability"] = probability
    args = arguments(model_conf=conf, **{**AUDIO, **changes})
    torch.manual_seed(0)
    model = ASRTask.build_model(args)
    note_input_(model, args)
    model.load_teacher_(torch.optim.SGD(model.parameters()))
    return model.train()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    speech, lengths = torch.randn(3, 12_000), torch.tensor([12_000, 9_000, 11_000])
    for wave, n in zip(speech, lengths, strict=True):
        wave[n:] = 0
    text = torch.randint(2, 8, (3, 4))
    counts = torch.tensor([4, 4, 3])
    return dict(speech=speech, speech_lengths=lengths, text=text, text_lengths=counts)


def heard(model) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """What student and teacher hear in a step, and its figures."""
    with record(model) as mine, record(model.teacher.model) as its:
        loss, stats, _ = model(**batch())
    if model.training:
        loss.backward()
    return mine.encoder_args[0], its.encoder_args[0], stats


@pytest.mark.parametrize("probability", [0.0, 1e-12])
def test_where_nobody_is_disturbed_both_hear_the_same(probability, tmp_path):
    """To the bit, with the same time warping and masks, though in a pass of its own."""
    model = student(tmp_path / "dense", probability)
    mine, its, _ = heard(model)
    assert torch.equal(mine, its)
    assert not torch.equal(mine, heard(model.eval())[0])  # which has no SpecAugment
    assert not any(module.training for module in model.teacher.model.modules())


@pytest.mark.parametrize("conf", [{"apply_time_mask": False}, {"apply_freq_mask": False}])
def test_the_teacher_has_the_students_specaugment(conf, tmp_path):
    """Also where the student's differs from its own, and where others draw before it."""
    conf = {**AUDIO["specaug_conf"], **conf}
    model = student(tmp_path / "dense", 1e-12, specaug_conf=conf)
    own = model.teacher.model.specaug
    model.frontend.register_forward_hook(lambda *_: torch.rand(1) and None)
    mine, its, _ = heard(model)
    assert torch.equal(mine, its)
    assert model.teacher.model.specaug is own


def test_a_student_without_specaugment_has_a_teacher_without(tmp_path):
    model = student(tmp_path / "dense", 1e-12, specaug=None, specaug_conf={})
    mine, its, _ = heard(model)
    assert torch.equal(mine, its)


def test_the_teacher_hears_what_is_not_disturbed(tmp_path):
    model = student(tmp_path / "dense", 1.0)
    mine, its, stats = heard(model)
    assert mine.shape == its.shape
    assert not torch.equal(mine, its)
    assert bool(torch.isfinite(stats["loss_layer"]))
    sound = []  # before SpecAugment, which works in place
    for probability, network in ((0.0, model), (1.0, model.teacher.model)):
        model.disturb_probability = probability
        hook = network.frontend.register_forward_hook(
            lambda _, args, output: sound.append(output[0].clone())
        )
        heard(model)
        hook.remove()
    assert torch.equal(*sound)


def test_in_validation_nobody_is_disturbed(tmp_path):
    model = student(tmp_path / "dense", 1.0).eval()
    mine, its, stats = heard(model)
    assert torch.equal(mine, its)
    assert float(stats["loss_layer"]) < 1e-12


def test_the_teachers_pass_draws_nothing_that_others_would_have_drawn(tmp_path):
    model = student(tmp_path / "dense", 1.0)
    after = []
    for teacher in (model.teacher, None):
        model.teacher = teacher
        model(**batch())
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_a_model_that_reads_features_is_refused():
    with pytest.raises(ValueError, match=r"disturb_probability is 0\.5; expected 0"):
        model(model_conf={"disturb_probability": 0.5})
