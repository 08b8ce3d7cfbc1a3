"""Do pruning runs land on their target, as `adopt` writes them and with nothing set?

Each run has its data, loss, length and target. A small dense recognizer is trained on the
data, or taken as it lies there; `adopt` makes it prunable; then it is pruned. Reported
are, in points, the largest distance of the expected sparsity from its target, from the
first update of the ramp on, and that of the actual sparsity at the end; the share of
gates that were undecided when they were fixed; and the loss on held-out speech before and
after that, when batch norms begin anew (here on some batches, without an update).
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import soundfile
import torch
import yaml
from common import keep, parser, save_experiment, show, start, table
from espnet2.schedulers.warmup_lr import WarmupLR
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.projected import undecided
from espnet_l0prune.deploy.adopt import adopt
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.deploy.configuration import parse
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.experiment import average_of, load_trained, read_config

PARAMS, MACS, BOTH = ("params",), ("macs",), ("params", "macs")
RUNS = [  # data, loss, updates, target and the costs that have it
    ("fsdd", "hybrid", 150, 0.3, PARAMS),
    ("fsdd", "hybrid", 300, 0.5, BOTH),
    ("fsdd", "hybrid", 3000, 0.8, MACS),
    ("fsdd", "ctc", 300, 0.9, PARAMS),
    ("fsdd", "transducer", 150, 0.5, PARAMS),
    ("fsdd", "normalized", 740, 0.7, BOTH),
    ("speechocean", "hybrid", 150, 0.5, PARAMS),
    ("speechocean", "hybrid", 300, 0.8, PARAMS),
    ("speechocean", "hybrid", 740, 0.5, BOTH),
    ("speechocean", "ctc", 740, 0.7, MACS),
    ("speechocean", "transducer", 300, 0.5, MACS),
    ("speechocean", "normalized", 1500, 0.9, PARAMS),
    ("mini_an4", "hybrid", 150, 0.9, PARAMS),
    ("mini_an4", "hybrid", 740, 0.3, MACS),
    ("mini_an4", "ctc", 150, 0.5, BOTH),
    ("mini_an4", "ctc", 3000, 0.7, PARAMS),
    ("mini_an4", "transducer", 740, 0.8, BOTH),
    ("mini_an4", "normalized", 300, 0.5, PARAMS),
    ("synthetic", "hybrid", 300, 0.7, PARAMS),
    ("synthetic", "hybrid", 1500, 0.5, MACS),
    ("synthetic", "ctc", 150, 0.3, MACS),
    ("synthetic", "ctc", 740, 0.8, BOTH),
    ("synthetic", "transducer", 1500, 0.7, PARAMS),
    ("synthetic", "normalized", 150, 0.8, PARAMS),
]
KEYS = "data", "loss", "updates", "target"  # these tell runs apart
EPOCHS = 6
POINTS = 50  # of a path that are kept
DENSE = 200  # updates of a dense training
HELD_OUT = 40  # utterances, and at most a quarter
SECONDS = 6.0  # of the longest utterance
BATCH = 6  # utterances; of a transducer 1, as ESPnet's loss is slow without a GPU
RENEWAL = 60  # utterances that batch norms see when they begin anew
ENCODER = {
    "output_size": 48,
    "attention_heads": 4,
    "linear_units": 192,
    "num_blocks": 3,
    "macaron_style": True,
    "rel_pos_type": "latest",
    "cnn_module_kernel": 15,
}
DECODER = {"attention_heads": 4, "linear_units": 96, "num_blocks": 1}
LOSSES = {  # the options that make each
    "hybrid": {"model_conf": {"ctc_weight": 0.3}},
    "ctc": {"model_conf": {"ctc_weight": 1.0}},
    "normalized": {"model_conf": {"ctc_weight": 0.3, "length_normalized_loss": True}},
    "transducer": {
        "model_conf": {"ctc_weight": 0.3, "report_cer": False, "report_wer": False},
        "decoder": "transducer",
        "decoder_conf": {"hidden_size": 48},
        "joint_net_conf": {"joint_space_size": 48},
    },
}
Speech = list[tuple[torch.Tensor, str]]


class Data(NamedTuple):
    """What a model trains on, or is scored with."""

    speech: Speech
    tokens: list[str]
    batch: int


def read_speech(folder: Path) -> Speech:
    """The shorter utterances of a folder with wav.scp and text, as ESPnet's."""
    paths, texts, found = table(folder / "wav.scp"), table(folder / "text"), []
    for name, path in paths.items():
        if soundfile.info(path).duration <= SECONDS:
            wave, _ = soundfile.read(path, dtype="float32")
            found.append((torch.from_numpy(wave), texts[name]))
    if len(found) < 4:
        raise SystemExit(
            f"{folder} has {len(found)} utterances of at most {SECONDS} s; expected 4"
        )
    return found


def noise() -> Speech:
    """In place of speech, where a run only has to work."""
    letters = torch.randint(0, 26, (HELD_OUT + 8, 5)).tolist()
    return [(torch.randn(8000), "".join(chr(97 + i) for i in row)) for row in letters]


def batches(data: Data) -> Iterator[dict[str, torch.Tensor]]:
    """The utterances in random order, once, padded as ESPnet's collate function pads."""
    ids = {token: i for i, token in enumerate(data.tokens)}
    ids[" "] = ids.get("<space>", 1)
    pad = torch.nn.utils.rnn.pad_sequence
    for part in torch.randperm(len(data.speech)).split(data.batch):
        waves, lines = zip(*(data.speech[i] for i in part.tolist()), strict=True)
        texts = [torch.tensor([ids.get(c, 1) for c in line]) for line in lines]
        yield {
            "speech": pad(waves, batch_first=True),
            "speech_lengths": torch.tensor([len(w) for w in waves]),
            "text": pad(texts, batch_first=True, padding_value=-1),
            "text_lengths": torch.tensor([len(t) for t in texts]),
        }


def updates_of(model, optimizer, scheduler, data: Data) -> Iterator[None]:
    """Update a model without end, as ESPnet's trainer does; yields after each update."""
    while True:
        for batch in batches(data):
            model.train()(**batch)[0].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
            yield


@torch.no_grad()
def loss_of(model, data: Data) -> float:
    """The mean loss of held-out utterances."""
    losses = [model.eval()(**batch)[0] for batch in batches(data)]
    return float(sum(losses)) / len(losses)


@torch.no_grad()
def renew_batch_norms_(model, data: Data) -> None:
    """Compute statistics that were restarted on some batches, without an update."""
    model.train()
    for batch in itertools.islice(batches(data), RENEWAL // data.batch):
        model(**batch)


def batch_of(model) -> int:
    """Utterances of a batch."""
    return 1 if model.use_transducer_decoder else BATCH


def train_dense(folder: Path, speech: Speech, loss: str, updates: int) -> None:
    """Write a small dense experiment that was trained a little."""
    args = ASRTask.get_parser().parse_args(
        ["--output_dir", str(folder), "--token_type", "char"]
    )
    letters = sorted({c for _, text in speech for c in text} - {" "})
    args.token_list = ["<blank>", "<unk>", "<space>", *letters, "<sos/eos>"]
    args.frontend_conf = {"fs": "16k", "n_fft": 512, "hop_length": 160}
    args.encoder, args.encoder_conf = "conformer", dict(ENCODER)
    args.decoder, args.decoder_conf = "transformer", dict(DECODER)
    args.normalize, args.max_epoch = "utterance_mvn", 3 * EPOCHS
    args.optim, args.optim_conf = "adamw", {"lr": 2e-3}
    args.scheduler, args.scheduler_conf = "warmuplr", {"warmup_steps": 100}
    for name, value in LOSSES[loss].items():
        setattr(args, name, value)
    model = build_model(args)
    (optimizer,) = ASRTask.build_optimizers(args, model)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1, 100)
    data = Data(speech, args.token_list, batch_of(model))
    for _ in itertools.islice(updates_of(model, optimizer, scheduler, data), updates):
        pass
    args.output_dir = None
    save_experiment(folder, args, model)


def rounded(goals: list[float], found: list[float]) -> list[list[float]]:
    """As exact as a picture is."""
    return [[round(value, 4) for value in values] for values in (goals, found)]


def prune(
    dense: Path, speech: Speech, updates: int, target: dict, constraint: str | None
) -> dict[str, object]:
    """One run: its figures, and the path of targets and expected sparsities."""
    held = min(HELD_OUT, len(speech) // 4)
    settings = {"sparsity_constraint": constraint} if constraint else {}
    choice = Choice(target, epochs=(EPOCHS, EPOCHS), data=False, settings=settings)
    with TemporaryDirectory() as folder:
        adopted = adopt(dense, Path(folder) / "l0", None, choice)
        args = parse(yaml.safe_load(adopted.prune.read_text("utf-8")))
    args.output_dir = None
    model = build_model(args)
    how = args.token_list, batch_of(model)
    held_out, data = Data(speech[:held], *how), Data(speech[held:], *how)
    trained = load_trained(read_config(dense / "config.yaml"), dense / average_of(dense))
    model.load_state_dict(trained.state_dict(), strict=False)
    (optimizer,) = ASRTask.build_optimizers(args, model)
    controller, path, row = model.controller, [], {}
    scheduler = None
    if args.scheduler == "warmuplr":
        scheduler = WarmupLR(optimizer, **args.scheduler_conf)
    freeze_, new = controller._freeze, controller.budget.new()

    def watched_freeze_() -> None:
        row["undecided (%)"] = 100 * undecided(controller.budget)
        row["loss before"] = loss_of(model, held_out)
        freeze_()
        renew_batch_norms_(model, data)
        row["loss after"] = loss_of(model, held_out)

    controller._freeze = watched_freeze_
    making = updates_of(model, optimizer, scheduler, data)
    for update in range(updates):
        if update % (updates // EPOCHS) == 0:
            epoch = update // (updates // EPOCHS)
            controller.begin_epoch(updates // EPOCHS, EPOCHS, epoch)
        next(making)
        if controller.phase in ("ramp", "hold"):
            report = controller.report()
            goals = [report[f"sparsity_target_{cost}"] for cost in target]
            found = [report[f"sparsity_expected_{cost}"] for cost in target]
            path.append((goals, found, [new[cost] for cost in target]))
    actual, every = controller.budget.actual(), max(len(path) // POINTS, 1)
    off = (
        abs(expected - max(goal, least))
        for step in path
        for goal, expected, least in zip(*step, strict=True)
    )
    return {
        "off on the way (points)": 100 * max(off),
        "actual": ", ".join(f"{actual[cost]:.4f}" for cost in target),
        "above at the end (points)": 100 * max(actual[c] - target[c] for c in target),
        **row,
        "rise (%)": 100 * (row["loss after"] / row["loss before"] - 1),
        "path": [rounded(goals, found) for goals, found, _ in path[::every]],
    }


def draw(rows: list[dict], file: Path) -> None:
    """Target and expected sparsity of every run."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 6, figsize=(18, 10), sharey=True, layout="constrained")
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, row in zip(axes.flat, rows, strict=False):
        axis.plot([goals for goals, _ in row["path"]], "k--")
        axis.plot([found for _, found in row["path"]])
        axis.set_title(", ".join(str(row[key]) for key in KEYS), fontsize=8)
    figure.supxlabel("time, in ramp and hold")
    figure.supylabel("target (dashed) and expected sparsity of the encoder")
    figure.savefig(file)


def named(text: str) -> tuple[str, Path]:
    """A folder with its name, of NAME=FOLDER."""
    name, equals, folder = text.partition("=")
    if not equals or name not in {data for data, *_ in RUNS}:
        raise argparse.ArgumentTypeError(f"{text} is none of NAME=FOLDER")
    return name, Path(folder)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--data", type=named, action="append", default=[], metavar="NAME=FOLDER",
        help="a folder with wav.scp and text; only runs on given data are made",
    )  # fmt: skip
    options.add_argument(
        "--dense", type=named, action="append", default=[], metavar="NAME=EXP",
        help="a dense experiment for the hybrid runs on some data",
    )  # fmt: skip
    options.add_argument("--constraint", help="another sparsity_constraint")
    options.add_argument(
        "--resume", action="store_true", help="keep the runs that --json has"
    )
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the paths")
    args = options.parse_args(argv)
    start(args)
    folders, given = dict(args.data), dict(args.dense)
    if args.resume and not (args.json and args.json.is_file()):
        raise SystemExit(f"--resume: expected the file of --json, which is {args.json}")
    if not folders and not args.quick:
        raise SystemExit("--data is missing; expected fsdd=FOLDER, say")
    speech = {name: read_speech(folder) for name, folder in folders.items()}
    grid, dense_updates = [run for run in RUNS if run[0] in speech], DENSE
    if args.quick:
        grid, dense_updates = [("noise", "ctc", 24, 0.5, PARAMS)], 2
        speech = {"noise": noise()}
    rows = json.loads(args.json.read_text("utf-8"))["rows"] if args.resume else []
    done = {tuple(row[key] for key in KEYS) for row in rows}
    with TemporaryDirectory() as made:
        short_first = sorted(grid, key=lambda run: (run[1] == "transducer", run[2]))
        for data, loss, updates, share, costs in short_first:
            run = data, loss, updates, f"{share:.0%} {' and '.join(costs)}"
            if run in done:
                continue
            torch.manual_seed(args.seed)
            dense = Path(made) / f"{data}_{loss}"
            if loss == "hybrid" and data in given:
                dense = given[data]
            elif not dense.exists():
                train_dense(dense, speech[data], loss, dense_updates)
            target = dict.fromkeys(costs, share)
            torch.manual_seed(args.seed)
            row = prune(dense, speech[data], updates, target, args.constraint)
            rows.append({**dict(zip(KEYS, run, strict=True)), **row})
            keep(args, rows)
    show([{k: v for k, v in row.items() if k != "path"} for row in rows])
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
