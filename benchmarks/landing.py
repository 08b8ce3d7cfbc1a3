"""Do pruning runs land on their target? Constraints x schedules x targets.

A small Conformer with gates on heads, channels and front end is trained from random
weights on short utterances, with no teacher, through all phases. Reported are, during
phase `hold`, the largest distance of the expected sparsity from its target, and at the
end that of the actual sparsity, both in points.
"""

from pathlib import Path

import torch
from common import parser, start, write
from espnet2.tasks.asr import ASRTask

CONSTRAINTS = ("lagrangian", "inequality", "nupi")  # with their default options
# each with four of the schedules and every target
GRID = [
    ("lagrangian", "linear", 0.3),
    ("lagrangian", "cubic", 0.5),
    ("lagrangian", "cosine", 0.7),
    ("lagrangian", "constant", 0.8),
    ("inequality", "exponential", 0.3),
    ("inequality", "linear", 0.5),
    ("inequality", "staircase", 0.7),
    ("inequality", "cosine", 0.8),
    ("nupi", "constant", 0.3),
    ("nupi", "staircase", 0.5),
    ("nupi", "cubic", 0.7),
    ("nupi", "exponential", 0.8),
]
PHASES = {"warmup_steps": 20, "ramp_steps": 560, "hold_steps": 160}
STAIRS = 20
FROZEN = 10
BATCH = 8
ENCODER = {
    "output_size": 32,
    "attention_heads": 4,
    "linear_units": 128,
    "num_blocks": 2,
    "macaron_style": True,
    "rel_pos_type": "latest",
    "cnn_module_kernel": 7,
}


def read_speech(folder: Path, seconds: float = 3.0) -> list[tuple[torch.Tensor, str]]:
    """The shorter utterances of a folder with wav.scp and text, as ESPnet's."""
    import soundfile

    texts = dict(
        line.split(maxsplit=1) for line in (folder / "text").read_text().splitlines()
    )
    found = []
    for line in (folder / "wav.scp").read_text().splitlines():
        name, path = line.split(maxsplit=1)
        if soundfile.info(path).duration <= seconds and len(found) < 400:
            wave, _ = soundfile.read(path, dtype="float32")
            found.append((torch.from_numpy(wave), texts[name]))
    if not found:
        raise SystemExit(f"{folder} has no utterance of at most {seconds} s")
    return found


def noise() -> list[tuple[torch.Tensor, str]]:
    """In place of speech, where a run only has to work."""
    letters = torch.randint(0, 26, (16, 5)).tolist()
    return [(torch.randn(16_000), "".join(chr(97 + i) for i in row)) for row in letters]


def build(constraint: str, schedule: str, schedule_conf: dict, tokens: list):
    """Model and optimizer at the start, as ESPnet makes them."""
    args = ASRTask.get_parser().parse_args(["--output_dir", "none"])
    args.token_list, args.token_type = tokens, "char"
    args.frontend_conf = {"fs": "16k", "n_fft": 512, "hop_length": 160}
    args.encoder, args.encoder_conf = "l0_conformer", dict(ENCODER)
    args.decoder = "transformer"
    args.decoder_conf = {"attention_heads": 2, "linear_units": 64, "num_blocks": 1}
    args.model, args.model_conf = "l0_distill", {"ctc_weight": 0.3}
    args.optim, args.optim_conf = "l0_adamw", {"lr": 1e-3, "gate_lr": 0.03}
    args.sparsity_constraint, args.sparsity_constraint_conf = constraint, {}
    args.sparsity_scheduler, args.sparsity_scheduler_conf = schedule, schedule_conf
    model = ASRTask.build_model(args)
    (optimizer,) = ASRTask.build_optimizers(args, model)
    return model.train(), optimizer


def batches(speech: list, tokens: list, count: int):
    """Random batches without end, padded as ESPnet's collate function pads."""
    ids = {token: i for i, token in enumerate(tokens)}
    for _ in range(count):
        chosen = [speech[i] for i in torch.randint(len(speech), (BATCH,)).tolist()]
        waves = [wave for wave, _ in chosen]
        texts = [torch.tensor([ids.get(c, 1) for c in text]) for _, text in chosen]
        pad = torch.nn.utils.rnn.pad_sequence
        yield {
            "speech": pad(waves, batch_first=True),
            "speech_lengths": torch.tensor([len(w) for w in waves]),
            "text": pad(texts, batch_first=True, padding_value=-1),
            "text_lengths": torch.tensor([len(t) for t in texts]),
        }


def train(speech: list, phases: dict, constraint: str, schedule: str, target: float):
    """One run: its row, and the path of target and expected sparsity."""
    letters = sorted({c for _, text in speech for c in text})
    tokens = ["<blank>", "<unk>", *letters, "<sos/eos>"]
    conf = {"target": target, **phases}
    if schedule == "staircase":
        conf["stairs"] = STAIRS
    model, optimizer = build(constraint, schedule, conf, tokens)
    controller, path = model.controller, []
    for batch in batches(speech, tokens, sum(phases.values()) + FROZEN):
        loss, stats, _ = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        names = "sparsity_target_params", "sparsity_expected_params"
        path.append((controller.phase, *(float(stats[name]) for name in names)))
    held = [abs(expected - goal) for phase, goal, expected in path if phase == "hold"]
    actual = controller.budget.actual()["params"]
    row = {
        "constraint": constraint,
        "schedule": schedule,
        "target": target,
        "actual": actual,
        "off at the end (points)": 100 * abs(actual - target),
        "off in hold (points)": 100 * max(held),
    }
    return row, path


def draw(paths: dict[str, list], file: Path) -> None:
    """Target and expected sparsity of every run."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(14, 8), sharex=True, sharey=True)
    for axis, (name, path) in zip(axes.flat, paths.items(), strict=False):
        axis.plot([goal for _, goal, _ in path], "k--", label="target")
        axis.plot([expected for _, _, expected in path], label="expected")
        axis.set_title(name, fontsize=9)
    axes[0, 0].legend()
    figure.supxlabel("updates")
    figure.supylabel("sparsity of the encoder's parameters")
    figure.tight_layout()
    figure.savefig(file)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, help="folder with wav.scp and text")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the paths")
    options.add_argument("--only", choices=CONSTRAINTS, help="just this constraint")
    args = options.parse_args(argv)
    start(args)
    if args.data is None and not args.quick:
        raise SystemExit(
            "--data is missing; expected a folder with wav.scp and text, such as egs/"
            "librispeech/data/mini/train after `egs/librispeech/run.sh --stop_stage 1`"
        )
    speech = noise() if args.data is None else read_speech(args.data)
    phases, grid = PHASES, GRID
    if args.quick:
        phases, grid = {"warmup_steps": 1, "ramp_steps": 4, "hold_steps": 2}, GRID[:1]
    rows, paths = [], {}
    for constraint, schedule, target in grid:
        if args.only in (None, constraint):
            torch.manual_seed(args.seed)
            row, path = train(speech, phases, constraint, schedule, target)
            rows.append(row)
            paths[f"{constraint}, {schedule}, {target:.0%}"] = path
    write(args, rows)
    if args.plot:
        draw(paths, args.plot)


if __name__ == "__main__":
    main()
