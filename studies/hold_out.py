"""Hold speakers out of the training set of a corpus in LibriSpeech's layout.

They become a further set of the corpus, on which options can be chosen, so that the test
set is only scored by what was chosen.
"""

import argparse
from pathlib import Path


def hold_out(corpus: Path, train: str, to: str, count: int) -> list[str]:
    """Move the folders of some speakers, evenly spaced in the order of their names.

    Args:
        corpus: the folder with the sets
        train: name of the training set
        to: name of the set to make
        count: number of speakers

    Returns:
        the speakers' names

    Raises:
        ValueError: a set that exists, or too few speakers
    """
    speakers = sorted(path.name for path in (corpus / train).iterdir() if path.is_dir())
    if (corpus / to).exists():
        raise ValueError(f"{corpus / to} exists; expected the name of a new set")
    if not 0 < count < len(speakers):
        raise ValueError(
            f"{train} has {len(speakers)} speakers; expected to hold out fewer, and at "
            f"least one, not {count}"
        )
    chosen = [speakers[i * len(speakers) // count] for i in range(count)]
    (corpus / to).mkdir()
    for speaker in chosen:
        (corpus / train / speaker).rename(corpus / to / speaker)
    return chosen


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("corpus", type=Path, help="its LibriSpeech folder")
    options.add_argument("train", help="set to take speakers from")
    options.add_argument("to", help="set to make of them")
    options.add_argument("--speakers", type=int, default=20, help="how many")
    args = options.parse_args(argv)
    chosen = hold_out(args.corpus, args.train, args.to, args.speakers)
    print(f"{args.corpus / args.to}: {' '.join(chosen)}")


if __name__ == "__main__":
    main()
