"""What ships: size, WER and real-time factors of a dense and a pruned model, by torch and
by onnxruntime, in float and in int8.

All of them decode the same test set with ESPnet's Speech2Text on one thread. They take
turns at each utterance, so that a busy machine is busy for all. Sizes are those of the
files with the weights; the encoder's time is that of the encoder alone. Each WER is
compared with that of the same model in torch's float, with a 95% interval over speakers.
"""

import tempfile
import time
from pathlib import Path

import jiwer
import torch
from common import (
    RATE,
    arguments,
    errors_by_speaker,
    pair_parser,
    read_test_set,
    save_experiment,
    start_pair,
    table,
    write,
)
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet_model_zoo.downloader import ModelDownloader
from rich.progress import track
from torch import Tensor

from espnet_l0prune.deploy.bench import real_time_factors
from espnet_l0prune.deploy.card import About
from espnet_l0prune.deploy.export import export
from espnet_l0prune.plugin.experiment import average_of
from espnet_l0prune.report.bootstrap import wer_difference_interval

TIMED = 20  # utterances, for the encoder alone
BLOCK = {"num_blocks": 1, "linear_units": 64}
PLAIN = {"output_size": 64, "macaron_style": False, "use_cnn_module": False}
SMALL = {"encoder_conf": {**BLOCK, **PLAIN}, "decoder_conf": BLOCK}


def load(
    experiments: dict[str, Path], folder: Path, options: dict, graphs: tuple[bool, ...]
) -> dict:
    """Each form's Speech2Text, and the bytes of its weights, by name.

    Args:
        experiments: by name
        folder: for what is exported
        options: of the search
        graphs: for each form of ONNX, whether its weights are in int8
    """

    def unpacked(experiment: Path, form: str, int8: bool) -> dict[str, str]:
        name = f"{form}-{int8:d}-{len(found)}"
        archive, checkpoint = folder / f"{name}.zip", average_of(experiment)
        export(experiment, checkpoint, archive, form, About(name), int8=int8)
        return ModelDownloader(folder / name).download_and_unpack(str(archive))

    found = {}
    for what, experiment in experiments.items():
        files = unpacked(experiment, "plugin", int8=False)
        for int8 in (False, True):
            made = Speech2Text(**files, **options, quantize_asr_model=int8)
            weights = folder / "weights.pth"
            torch.save(made.asr_model.state_dict(), weights)
            found[what + " int8" * int8] = made, weights.stat().st_size
        for int8 in graphs:
            files = unpacked(experiment, "onnx", int8)
            home = Path(files["asr_model_file"]).parent
            parts = [home / "model.pth", home / "encoder.onnx", home / "decoder.onnx"]
            size = sum(part.stat().st_size for part in parts)
            made = Speech2Text(**files, **options)
            found[f"{what} ONNX" + " int8" * int8] = made, size
    return found


def measure(
    found: dict, waves: list[Tensor], texts: list[str], speakers: list[str]
) -> list[dict]:
    """Decode everything; one row for each form."""
    spoken: dict[str, list[str]] = {name: [] for name in found}
    times, names = dict.fromkeys(found, 0.0), [*found]
    for made, _ in found.values():
        made(waves[0])  # warm
    for wave in track(waves, "decoding"):
        names = [*names[1:], names[0]]
        for name in names:
            begin = time.perf_counter()
            text, *_ = found[name][0](wave)[0]
            times[name] += time.perf_counter() - begin
            spoken[name].append(text)
    networks = {name: made.asr_model for name, (made, _) in found.items()}
    encoders = real_time_factors(networks, waves[:TIMED], RATE)
    seconds, rows = sum(len(wave) for wave in waves) / RATE, []
    for name, (_, size) in found.items():
        torch_float = spoken[name.split()[0]]
        errors, words = errors_by_speaker(texts, spoken[name], speakers)
        others, _ = errors_by_speaker(texts, torch_float, speakers)
        low, high = wer_difference_interval(errors, others, words)
        same = sum(a == b for a, b in zip(spoken[name], torch_float, strict=True))
        rows.append(
            {
                "form": name,
                "size (MB)": size / 1e6,
                "WER (%)": 100 * jiwer.wer(texts, spoken[name]),
                "against float (points)": f"[{100 * low:+.2f}, {100 * high:+.2f}]",
                "CER (%)": 100 * jiwer.cer(texts, spoken[name]),
                "text as in torch's float": f"{same} of {len(waves)}",
                "RTF": times[name] / seconds,
                "time": times[name] / times["dense"],
                "encoder's RTF": encoders[name],
                "encoder's time": encoders[name] / encoders["dense"],
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    args = pair_parser(__doc__).parse_args(argv)
    decode = start_pair(args)
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            dense = Path(folder) / "exp"
            small = arguments("librispeech100", **SMALL)
            save_experiment(dense, small, ASRTask.build_model(small))
            waves, texts, speakers = [0.1 * torch.randn(RATE)], ["noise"], ["nobody"]
            experiments, graphs = {"dense": dense}, (True,)
        else:
            graphs = False, True
            experiments = {"dense": args.dense, "cut": args.pruned}
            found, texts = read_test_set(args.data)
            waves = [torch.from_numpy(wave) for wave in found]
            speakers = [*table(args.data / "utt2spk").values()]
        found = load(experiments, Path(folder), decode, graphs)
        write(args, measure(found, waves, texts, speakers))


if __name__ == "__main__":
    main()
