"""sherpa-onnx beside torch: error rates, time, size and memory of greedy CTC.

Both decode the same test set on one thread, by the best token of the CTC in each frame:
torch with ESPnet's model, and sherpa-onnx with what `export sherpa` writes, in float and
in int8, in a process of its own that has nothing else. Intervals are those of the
difference from torch's WER with the same model, 95%, by a bootstrap over speakers.

With --random, no experiments are read: the models are an E-Branchformer of
LibriSpeech-100's size with 5000 tokens and random weights, and the same without half of
its encoder's parameters and MACs, by random gates. They hear noise, and have no errors.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

import jiwer
import numpy as np
import torch
from common import (
    RATE,
    arguments,
    decide_gates_,
    draw_gates_,
    errors_by_speaker,
    pair_parser,
    read_test_set,
    resident,
    save_experiment,
    start,
    start_pair,
    table,
    write,
)
from espnet2.tasks.asr import ASRTask
from espnet2.text.build_tokenizer import build_tokenizer
from rich.progress import track

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.deploy.card import About, load_finished
from espnet_l0prune.deploy.cut import cut_config
from espnet_l0prune.deploy.sherpa import export_sherpa
from espnet_l0prune.plugin.building import note_input_
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.plugin.experiment import average_of
from espnet_l0prune.report.bootstrap import wer_difference_interval

SIZE100 = {  # of LibriSpeech-100's E-Branchformer in ESPnet
    **{"output_size": 256, "attention_heads": 4, "num_blocks": 12, "linear_units": 1024},
    **{"cgmlp_linear_units": 1024, "cgmlp_conv_kernel": 31, "merge_conv_kernel": 31},
    **{"rel_pos_type": "latest", "macaron_ffn": True, "use_ffn": True},
}
HALF, HEARD = {"params": 0.5, "macs": 0.5}, (6, 10.0)  # utterances, seconds of each
SMALL = {"attention_heads": 4, "linear_units": 256, "num_blocks": 1}
RUNTIME = """
import json, sys, time
import numpy as np, sherpa_onnx
folder, route, waves, rate = sys.argv[1:]
begin = time.perf_counter()
load = getattr(sherpa_onnx.OfflineRecognizer, route)
by = load(model=f"{folder}/model.onnx", tokens=f"{folder}/tokens.txt", num_threads=1)
loaded, texts, spent = time.perf_counter() - begin, [], 0.0
for wave in np.load(waves).values():
    begin = time.perf_counter()
    stream = by.create_stream()
    stream.accept_waveform(int(rate), wave)
    by.decode_stream(stream)
    spent += time.perf_counter() - begin
    texts.append(stream.result.text)
peak = [x for x in open("/proc/self/status") if x.startswith("VmHWM:")]
print(json.dumps([texts, spent, loaded, int(peak[0].split()[1]) * 1024]))
"""


@torch.no_grad()
def by_torch(experiment: Path, waves: list[np.ndarray]) -> tuple[list[str], float, int]:
    """Texts, seconds, and bytes of the weights that the CTC needs."""
    model, args = load_finished(experiment, average_of(experiment))
    tokenizer = build_tokenizer("char" if args.token_type == "char" else "word")
    if args.token_type == "bpe":
        tokenizer = build_tokenizer("bpe", args.bpemodel)
    texts, spent = [], 0.0
    for wave in track(waves, f"torch, {experiment.name}"):
        begin = time.perf_counter()
        audio = torch.from_numpy(wave)[None]
        encoded, _ = model.encode(audio, torch.tensor([audio.size(1)]))
        best = model.ctc.argmax(encoded)[0].tolist()
        tokens = [args.token_list[i] for i, _ in groupby(best) if i]
        texts.append(tokenizer.tokens2text(tokens).strip())
        spent += time.perf_counter() - begin
    parts = (model.encoder, model.ctc)
    return texts, spent, sum(4 * p.numel() for part in parts for p in part.parameters())


def by_sherpa(folder: Path, route: str, waves: Path) -> list:
    """Texts, seconds, seconds to load, and bytes of memory, of a process of its own."""
    command = [sys.executable, "-c", RUNTIME, str(folder), route, str(waves), str(RATE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"sherpa-onnx failed: {done.stderr[-1000:]}")
    return json.loads(done.stdout)


def measure(
    name: str,
    experiment: Path,
    waves: list[np.ndarray],
    reference: list[str] | None,
    speakers: list[str],
    folder: Path,
) -> list[dict]:
    """One row for torch, and one each for sherpa-onnx in float and in int8."""
    seconds = sum(map(len, waves)) / RATE
    texts, spent, size = by_torch(experiment, waves)

    def errors_of(said: list[str]) -> dict:
        if reference is None:
            return {}
        first, _ = errors_by_speaker(reference, texts, speakers)
        errors, words = errors_by_speaker(reference, said, speakers)
        low, high = wer_difference_interval(errors, first, words)
        return {
            "WER (%)": 100 * errors.sum() / words.sum(),
            "CER (%)": 100 * jiwer.cer(reference, said),
            "difference (points)": f"[{100 * low:+.2f}, {100 * high:+.2f}]",
        }

    def row(by: str, said: list[str], spent: float, size: int, peak: int) -> dict:
        return {
            "model": name,
            "by": by,
            **errors_of(said),
            "time per second of audio (ms)": 1000 * spent / seconds,
            "size (MB)": size / 1e6,
            "peak memory (MB)": peak / 1e6,
        }

    rows = [row("torch", texts, spent, size, resident(peak=True))]
    file = folder / "waves.npz"
    np.savez(file, *waves)
    for int8 in (False, True):
        by = "sherpa-onnx, int8" if int8 else "sherpa-onnx"
        out = folder / re.sub(r"\W+", "_", f"{name} {by}")
        checkpoint = average_of(experiment)
        done = export_sherpa(experiment, checkpoint, out, About(name), int8=int8)
        said, spent, loaded, peak = by_sherpa(out, done.route, file)
        size = (out / "model.onnx").stat().st_size
        rows.append(row(by, [s.strip() for s in said], spent, size, peak))
        rows[-1] |= {"load (s)": loaded, "route": done.route.removeprefix("from_")}
    return rows


def random_pair(folder: Path) -> dict[str, Path]:
    """Experiments with random weights, dense and cut by random gates."""
    experiments = {name: folder / f"random_{name}" for name in ("dense", "cut")}
    for name, experiment in experiments.items():
        args = arguments("librispeech100")
        args.encoder, args.encoder_conf = "l0_e_branchformer", {**SIZE100}
        args.encoder_conf["units"] = "default" if name == "cut" else []
        args.normalize = "utterance_mvn"
        model = ASRTask.build_model(args).eval()
        note_input_(model, args)
        if name == "cut":
            draw_gates_(model)
            plan = decide_gates_(model, HALF, Goal(target=HALF))
            cut_(model, sites_of(model), plan)
            args = argparse.Namespace(**cut_config(vars(args), model))
        save_experiment(experiment, args, model)
    return experiments


def main(argv: list[str] | None = None) -> None:
    options = pair_parser(__doc__)
    options.add_argument("--random", action="store_true", help="without experiments")
    args = options.parse_args(argv)
    if args.random:
        start(args)
        torch.set_num_threads(1)
    else:
        start_pair(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiments = {"dense": args.dense, "cut": args.pruned}
        if args.quick:
            small = arguments("librispeech100", encoder_conf=SMALL)
            small.decoder_conf["num_blocks"], small.normalize = 1, None
            experiments = {"dense": folder / "exp"}
            save_experiment(experiments["dense"], small, ASRTask.build_model(small))
            waves = [0.1 * torch.randn(RATE).numpy() for _ in range(2)]
            texts, speakers = ["noise", "more noise"], ["a", "b"]
        elif args.random:
            experiments, (number, seconds) = random_pair(folder), HEARD
            samples = int(seconds * RATE)
            waves = [0.1 * torch.randn(samples).numpy() for _ in range(number)]
            texts, speakers = None, []
        else:
            waves, texts = read_test_set(args.data)
            speakers = [*table(args.data / "utt2spk").values()]
        rows = []
        for model, experiment in experiments.items():
            rows += measure(model, experiment, waves, texts, speakers, folder)
        write(args, rows)


if __name__ == "__main__":
    main()
