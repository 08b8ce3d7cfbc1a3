"""What a student learns from its teacher, beside sums written out by hand."""

import copy
import inspect

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.trace import Trace, record
from espnet_l0prune.testing.updates import batch
from tests.plugin.test_heads import configuration, save

WEIGHTS = {
    "task_weight": 0.7,
    "layer_weight": 2.0,
    "att_kl_weight": 3.0,
    "ctc_kl_weight": 5.0,
    "transducer_kl_weight": 7.0,
}
TEMPERATURE = 2.0
LAYER_DROP = {
    "layer_drop_rate": 0.5,
    "output_size": 16,
    "attention_heads": 2,
    "cgmlp_linear_units": 8,
    "cgmlp_conv_kernel": 3,
}


def utterances() -> dict[str, torch.Tensor]:
    """Of unequal lengths in frames and in tokens, with ESPnet's padding."""
    found = batch()
    for row, length in zip(found["text"], found["text_lengths"], strict=True):
        row[length:] = -1
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A student of each kind of head, and another network as its teacher."""
    found = {}
    for head in ("hybrid", "transducer with ctc"):
        folder = tmp_path_factory.mktemp("pair") / "dense"
        args = configuration(head, encoder_conf={"units": []}, optim="adamw")
        torch.manual_seed(1)
        teacher = ASRTask.build_model(args)
        save(folder, args, teacher, "model.pth")
        args.model_conf |= {
            "teacher_config": str(folder / "config.yaml"),
            "teacher_model_file": str(folder / "model.pth"),
            "temperature": TEMPERATURE,
            **WEIGHTS,
        }
        torch.manual_seed(0)
        student = ASRTask.build_model(args)
        student.load_teacher_(torch.optim.SGD(student.parameters()))
        found[head] = student.eval(), teacher.eval()
    return found


@torch.no_grad()
def losses(student) -> dict[str, float]:
    loss, stats, _ = student(**utterances())
    found = {name: float(value) for name, value in stats.items() if value is not None}
    assert float(loss) == pytest.approx(found["loss"])
    return found


@torch.no_grad()
def encoded(model) -> tuple[torch.Tensor, list[int], list[torch.Tensor]]:
    """The encoder's output, its lengths, and the output of each block."""
    data, blocks = utterances(), []
    hooks = [
        block.register_forward_hook(lambda *a: blocks.append(a[2][0][0]))
        for block in model.encoder.encoders
    ]
    features = model.normalize(data["speech"], data["speech_lengths"])
    output, lengths, _ = model.encoder(*features)
    for hook in hooks:
        hook.remove()
    assert len(set(lengths.tolist())) == 3
    return output, lengths.tolist(), blocks


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """KL(teacher || student) of two vectors of probabilities."""
    return float((teacher * (teacher.log() - student.log())).sum())


def softened(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities at the temperature."""
    powers = torch.exp(logits.double() / TEMPERATURE)
    return powers / powers.sum()


def kl_over(teacher: torch.Tensor, student: torch.Tensor, lengths: list[int]) -> float:
    """Over the first positions of each utterance, as Hinton et al. scale it."""
    total = sum(
        divergence(softened(teacher[b, i]), softened(student[b, i]))
        for b, length in enumerate(lengths)
        for i in range(length)
    )
    return TEMPERATURE**2 * total / len(lengths)


@torch.no_grad()
def test_predictions_of_an_attention_model(pairs):
    """CTC at every valid frame; attention at every token and at the end's."""
    student, teacher = pairs["hybrid"]
    found, data = losses(student), utterances()
    count = [int(n) + 1 for n in data["text_lengths"]]
    tokens = torch.full((3, max(count)), student.eos)
    for b, n in enumerate(count):
        tokens[b, 0], tokens[b, 1:n] = student.sos, data["text"][b, : n - 1]
    ctc, attention = [], []
    for model in (teacher, student):
        output, frames, _ = encoded(model)
        ctc.append(model.ctc.ctc_lo(output))
        lengths = torch.tensor(frames), torch.tensor(count)
        attention.append(model.decoder(output, lengths[0], tokens, lengths[1])[0])
    ctc, attention = kl_over(*ctc, frames), kl_over(*attention, count)
    assert found["loss_ctc_kl"] == pytest.approx(ctc, rel=1e-4)
    assert found["loss_att_kl"] == pytest.approx(attention, rel=1e-4)
    assert "loss_transducer_kl" not in found
    total = 0.7 * found["loss_task"] + 2 * found["loss_layer"] + 5 * ctc + 3 * attention
    assert found["loss"] == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_predictions_of_a_transducer(pairs):
    """At each node of the lattice: the next label, blank, or else."""
    student, teacher = pairs["transducer with ctc"]
    found, data, joint = losses(student), utterances(), []
    for model in (teacher, student):
        output, frames, _ = encoded(model)
        labels = torch.cat([torch.zeros(3, 1).long(), data["text"].clamp(min=0)], 1)
        decoded = model.decoder(labels)
        joint.append(
            model.joint_network(output[:, :, None], decoded[:, None]).softmax(-1)
        )
    total = 0.0
    for b, (time, count) in enumerate(zip(frames, data["text_lengths"], strict=True)):
        for t in range(time):
            for u in range(count + 1):
                classes = []
                for p in (lattice[b, t, u].double() for lattice in joint):
                    parts = [p[0]] if u == count else [p[0], p[data["text"][b, u]]]
                    classes.append(torch.stack([*parts, 1 - sum(parts)]))
                total += divergence(*classes)
    assert found["loss_transducer_kl"] == pytest.approx(total / 3, rel=1e-3)
    assert "loss_att_kl" not in found
    expected = 0.7 * found["loss_task"] + 2 * found["loss_layer"]
    expected += 7 * total / 3 + 5 * found["loss_ctc_kl"]
    assert found["loss"] == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("layer_loss", ["mse", "l1_cosine"])
def test_layers_are_compared_as_layer_loss_says(layer_loss, pairs, monkeypatch):
    student, teacher = pairs["hybrid"]
    monkeypatch.setattr(student, "layer_loss", layer_loss)
    (_, frames, ours), (_, _, theirs) = encoded(student), encoded(teacher)
    layers = []
    for one, two in zip(ours, theirs, strict=True):
        rows = [(one[b, t], two[b, t]) for b, n in enumerate(frames) for t in range(n)]
        if layer_loss == "mse":
            values = [float(((s - t) ** 2).mean()) for s, t in rows]
        else:
            cosines = [s @ t / (s.norm() * t.norm()) for s, t in rows]
            values = [
                float((s - t).abs().mean() + (1 + torch.exp(-c)).log())
                for (s, t), c in zip(rows, cosines, strict=True)
            ]
        layers.append(sum(values) / len(values))
    expected = sum(layers) / len(layers)
    assert losses(student)["loss_layer"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("head", "option", "loss"),
    [
        ("hybrid", "layer_weight", "loss_layer"),
        ("hybrid", "ctc_kl_weight", "loss_ctc_kl"),
        ("hybrid", "att_kl_weight", "loss_att_kl"),
        ("transducer with ctc", "transducer_kl_weight", "loss_transducer_kl"),
    ],
)
def test_a_weight_of_0_leaves_its_loss_out(head, option, loss, pairs, monkeypatch):
    student, _ = pairs[head]
    assert losses(student)[loss] > 0
    monkeypatch.setattr(student, option, 0.0)
    assert loss not in losses(student)


@torch.no_grad()
def test_frames_where_the_teacher_has_blank_are_left_out_if_told(pairs, monkeypatch):
    student, teacher = pairs["transducer with ctc"]
    ours, theirs = (m.ctc.ctc_lo(encoded(m)[0]) for m in (student, teacher))
    _, frames, _ = encoded(student)
    best = [theirs[b, t].argmax() for b, n in enumerate(frames) for t in range(n)]
    blank = int(torch.stack(best).mode()[0])  # an untrained one's favourite
    total = sum(
        divergence(softened(theirs[b, t]), softened(ours[b, t]))
        for b, n in enumerate(frames)
        for t in range(n)
        if theirs[b, t].argmax() != blank
    )
    assert total > 0
    data = utterances()
    with record(student) as trace:
        student(**data)
    target = Trace(ctc_out={"ctc": theirs})
    monkeypatch.setattr(student, "ctc_kl_frames", "non_blank")
    monkeypatch.setattr("espnet_l0prune.plugin.model.BLANK", blank)
    for name in ("layer_weight", "transducer_kl_weight"):
        monkeypatch.setattr(student, name, 0.0)
    found = student.distill(trace, target, data["text_lengths"])
    scale, loss = found["loss_ctc_kl"]
    assert scale == WEIGHTS["ctc_kl_weight"]
    assert float(loss) == pytest.approx(TEMPERATURE**2 * total / 3, rel=1e-4)


def test_predictions_count_by_the_token_where_the_task_does(pairs, monkeypatch):
    student, _ = pairs["hybrid"]
    summed = losses(student)
    monkeypatch.setattr(student.criterion_att, "normalize_length", True)
    normalized = losses(student)
    tokens, utterances = 5 + 3 + 4 + 3, 3  # with the end of each sentence
    for name in ("loss_att", "loss_att_kl"):
        mean = summed[name] * utterances / tokens
        assert normalized[name] == pytest.approx(mean, rel=1e-5), name
    assert normalized["loss_ctc_kl"] == summed["loss_ctc_kl"]


def test_a_teacher_is_of_the_students_type_and_never_trains(pairs):
    student, teacher = pairs["hybrid"]
    wide = copy.deepcopy(student).double().train()
    wide.load_teacher_(torch.optim.SGD(wide.parameters()))
    model = wide.teacher.model
    assert not any(module.training for module in model.modules())
    for (name, one), two in zip(
        model.named_parameters(), teacher.parameters(), strict=True
    ):
        assert one.dtype == torch.float64, name
        assert torch.equal(one, two.double())
        assert not one.requires_grad


def test_what_a_student_learns_by_default():
    """Of a teacher's predictions half, of the task all, of its layers as it finds."""
    parameters = inspect.signature(L0Distilled.__init__).parameters
    weights = {n: p.default for n, p in parameters.items() if n.endswith("_weight")}
    assert weights == {
        "task_weight": 1.0,
        "layer_weight": None,
        "att_kl_weight": 0.5,
        "ctc_kl_weight": 0.5,
        "transducer_kl_weight": 0.5,
        "cr_ctc_weight": 0.0,
    }
    assert parameters["temperature"].default == 1.0


def test_a_dropped_layer_has_no_intermediate_posteriors(tmp_path):
    """ESPnet's E-Branchformer leaves out the layers that it drops, and their CTC."""
    conf = {"num_blocks": 3, "interctc_layer_idx": [1, 2], "units": [], **LAYER_DROP}
    args = configuration("hybrid", encoder_conf={}, optim="adamw")
    args.encoder, args.encoder_conf = "l0_e_branchformer", conf
    args.model_conf |= {"interctc_weight": 0.5}
    save(tmp_path / "dense", args, ASRTask.build_model(args), "model.pth")
    args.model_conf |= {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    student = ASRTask.build_model(args).train()
    student.load_teacher_(torch.optim.SGD(student.parameters()))
    left = []
    student.encoder.register_forward_hook(lambda *call: left.append(call[2][0]))
    for seed in range(9):
        torch.manual_seed(seed)
        assert student(**utterances())[0].isfinite()
    counts = {len(out[1]) if isinstance(out, tuple) else 0 for out in left}
    assert counts == {0, 1, 2}
