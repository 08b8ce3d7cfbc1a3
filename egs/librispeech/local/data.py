#!/usr/bin/env python3
"""Read a corpus in LibriSpeech's layout into ESPnet data folders.

    ROOT[/LibriSpeech]/SPLIT/SPEAKER/CHAPTER/{*.flac, SPEAKER-CHAPTER.trans.txt}
        ->  DATADIR/NAME/{wav.scp, text, utt2spk}

No Kaldi is needed: ESPnet reads the FLAC files themselves (data type `sound`).
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
from rich.progress import track


class CorpusError(Exception):
    """Something about the corpus that the user has to mend."""


@dataclass
class Split:
    """Utterances of one or more splits; `bad` names the unreadable files."""

    wavs: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    bad: list[str] = field(default_factory=list)

    def check(self, name: str, max_bad: float) -> None:
        found = len(self.wavs) + len(self.bad)
        if self.bad and len(self.bad) > max_bad * found:
            shown = "\n  ".join(self.bad[:5])
            raise CorpusError(
                f"{name}: {len(self.bad)} of {found} FLAC files cannot be used, more "
                f"than --max_bad {max_bad:g} allows:\n  {shown}\n"
                "Restore the files from the corpus archive, or raise --max_bad."
            )


def find_split(root: Path, name: str) -> Path:
    for folder in (root / name, root / "LibriSpeech" / name):
        if folder.is_dir():
            return folder
    for folder in (root / "LibriSpeech", root):
        if folder.is_dir():
            there = sorted(p.name for p in folder.iterdir() if p.is_dir())
            raise CorpusError(
                f"{root} has no split {name!r}; expected "
                f"{root}[/LibriSpeech]/{name}/SPEAKER/CHAPTER. Folders there: "
                f"{', '.join(there[:12]) or 'none'}. Mend --corpus or the set names."
            )
    raise CorpusError(f"--corpus {root}: no such folder; expected a corpus's root")


def check_flac(path: Path, rate: int = 16_000) -> tuple[float, str | None]:
    """Return the length in seconds, and what is wrong (None if nothing)."""
    try:
        info = soundfile.info(path)
        if info.frames == 0:
            return 0.0, "holds no samples"
        if info.samplerate != rate or info.channels != 1:
            return 0.0, (
                f"has {info.channels} channels at {info.samplerate} Hz; "
                f"expected 1 at {rate}"
            )
        # the last samples of a truncated file cannot be read
        tail = min(1024, info.frames)
        with soundfile.SoundFile(path) as sound:
            sound.seek(info.frames - tail)
            if len(sound.read(tail)) != tail:
                return 0.0, "is truncated"
        return info.frames / info.samplerate, None
    except (soundfile.SoundFileError, OSError, RuntimeError) as e:
        return 0.0, f"cannot be read ({str(e).splitlines()[-1]})"


def read_split(folder: Path, split: Split) -> None:
    transcripts = sorted(folder.glob("*/*/*.trans.txt"))
    for path in track(transcripts, description=f"reading {folder.name}"):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            utt, _, text = line.partition(" ")
            if not text.strip():
                raise CorpusError(
                    f"{path}:{number}: {line!r} has no text; expected 'UTTERANCE TEXT'"
                )
            if utt in split.texts:
                raise CorpusError(
                    f"{path}:{number}: utterance {utt} occurs twice; "
                    "the sets must not overlap"
                )
            flac = path.parent / f"{utt}.flac"
            seconds, problem = check_flac(flac)
            if problem:
                split.bad.append(f"{flac} {problem}")
                continue
            split.wavs[utt] = flac.resolve()
            split.texts[utt] = " ".join(text.split())
            split.seconds += seconds


def write(split: Split, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    speakers = {utt: utt.split("-")[0] for utt in split.wavs}
    for name, table in (
        ("wav.scp", split.wavs),
        ("text", split.texts),
        ("utt2spk", speakers),
    ):
        lines = (f"{utt} {table[utt]}\n" for utt in sorted(split.wavs))
        (out / name).write_text("".join(lines), "utf-8")


def prepare(root: Path, sets: dict[str, list[str]], out: Path, max_bad: float) -> None:
    """Write `out/NAME` for every NAME in `sets`; write nothing if any is wrong."""
    splits = {}
    for name, parts in sets.items():
        split = splits[name] = Split()
        for part in parts:
            before = len(split.texts)
            read_split(find_split(root, part), split)
            if len(split.texts) == before and not split.bad:
                raise CorpusError(
                    f"{part}: no utterance found; expected SPEAKER/CHAPTER/*.trans.txt "
                    "below it. Check --corpus and the names of the sets."
                )
        split.check(f"{name} ({' '.join(parts)})", max_bad)
    for name, split in splits.items():
        write(split, out / name)
        print(f"{name}: {len(split.wavs)} utterances, {split.seconds / 60:.1f} minutes")
        for bad in split.bad:
            print(f"  skipped: {bad}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--datadir", type=Path, required=True)
    parser.add_argument("--train_sets", nargs="+", required=True)
    parser.add_argument("--valid_sets", nargs="+", required=True)
    parser.add_argument("--test_sets", nargs="+", required=True)
    parser.add_argument(
        "--max_bad", type=float, default=0.05, help="share of bad files to skip"
    )
    args = parser.parse_args()
    sets = {"train": args.train_sets, "valid": args.valid_sets}
    sets |= {f"test/{name}": [name] for name in args.test_sets}
    try:
        prepare(args.corpus, sets, args.datadir, args.max_bad)
    except (CorpusError, OSError, UnicodeDecodeError) as e:
        sys.exit(f"data: {e}")


if __name__ == "__main__":
    main()
