#!/usr/bin/env python3
"""Print how many seconds each stage of the demo takes on this machine, from 1 to 10.

Measured here: how long ESPnet takes to import, which almost every stage does, and an
update of the dense training. All else is a number of these.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

# Of each stage: imports of ESPnet, updates of the dense training. An epoch has 66 of
# these, and its validation takes as long as 4. By CPU time, an update of pruning takes as
# long as 1.3 in warm-up and more once gates are trained; decoding an utterance, as 1.2
# where the model is dense. The rest is guessed: it is corrected as the stages go.
STAGES = {
    1: (0, 100),
    2: (0, 2),
    3: (1, 30),
    4: (1, 18 * 70),
    5: (2, 8 * 70 * 1.4 + 10),
    6: (1, 10),
    7: (1, 3 * 70),
    8: (2, 5),
    9: (1, 2 * 150),
    10: (2, 5),
}
UPDATES = 3  # timed, after one more
TOKENS = ["<blank>", "<unk>", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'", "<space>", "<sos/eos>"]
BATCH = 12, 2.6, 25  # utterances, seconds and characters of each: half a minute


def stage_seconds(imported: float, update: float) -> list[int]:
    """Of each stage, where an import and an update take so many seconds."""
    return [round(i * imported + u * update) + 1 for i, u in STAGES.values()]


def update_seconds(config: Path) -> float:
    """Time an update on noise, by a training configuration."""
    import torch
    from espnet2.tasks.asr import ASRTask

    args = ASRTask.get_parser().parse_args(
        ["--config", str(config), "--output_dir", "none", "--token_type", "char"]
    )
    args.token_list = TOKENS
    model = ASRTask.build_model(args).train()
    optimizer = torch.optim.AdamW(model.parameters())
    count, seconds, characters = BATCH
    samples = round(16000 * seconds)
    for i in range(1 + UPDATES):
        if i == 1:
            begin = time.perf_counter()
        loss, _, _ = model(
            0.1 * torch.randn(count, samples),
            torch.full((count,), samples),
            torch.randint(2, len(TOKENS) - 1, (count, characters)),
            torch.full((count,), characters),
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - begin) / UPDATES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="of the dense training")
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # what libraries say is no figure
        begin = time.perf_counter()
        import espnet2.tasks.asr  # noqa: F401

        imported = time.perf_counter() - begin
        update = update_seconds(args.config)
    print(*stage_seconds(imported, update))


if __name__ == "__main__":
    main()
