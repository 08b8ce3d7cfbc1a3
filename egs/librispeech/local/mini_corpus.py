#!/usr/bin/env python3
"""Make a small corpus of synthetic speech in LibriSpeech's layout.

Spoken commands and numbers, said by eSpeak NG (the espeakng-loader wheel, through
ctypes: no root, no system package) in many voices, rates and pitches. No sentence is
in two of the splits train-mini, dev-mini and test-mini. Same seed, same corpus.
"""

import argparse
import ctypes
import shutil
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile
from rich.progress import track
from scipy.signal import resample_poly

RATE = 16_000  # Hz
SPLITS = {"train-mini": 800, "dev-mini": 60, "test-mini": 150}  # utterances
CHAPTER = 50  # utterances in one chapter folder
VOICES = [  # not f2, f3 and f5: their breath noise differs from run to run
    f"{accent}+{variant}"
    for accent in ("gmw/en-US", "gmw/en", "gmw/en-GB-x-rp")
    for variant in ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f4")
]

ONES = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
TEENS = [
    "TEN",
    "ELEVEN",
    "TWELVE",
    "THIRTEEN",
    "FOURTEEN",
    "FIFTEEN",
    "SIXTEEN",
    "SEVENTEEN",
    "EIGHTEEN",
    "NINETEEN",
]
TENS = ["TWENTY", "THIRTY", "FORTY", "FIFTY", "SIXTY", "SEVENTY", "EIGHTY", "NINETY"]
NUMBERS = ONES + TEENS + TENS + [f"{ten} {one}" for ten in TENS for one in ONES]
SLOTS = {
    "number": NUMBERS,
    "room": ["KITCHEN", "BEDROOM", "GARDEN", "OFFICE", "GARAGE", "HALL"],
    "thing": ["LIGHT", "FAN", "HEATER", "RADIO", "CAMERA"],
    "state": ["ON", "OFF"],
    "clock": ["ALARM", "TIMER"],
    "unit": ["SECONDS", "MINUTES", "HOURS"],
    "sign": ["PLUS", "MINUS", "TIMES"],
    "name": ["MARY", "PETER", "ANNA", "DAVID", "LAURA", "SIMON"],
    "move": ["LEFT", "RIGHT", "FORWARD", "BACK"],
}
PATTERNS = [
    "TURN {state} THE {room} {thing}",
    "SET THE {clock} TO {number} {unit}",
    "WHAT IS {number} {sign} {number}",
    "CALL {name} IN {number} {unit}",
    "MOVE {number} STEPS {move}",
    "{number} {number} {number}",
]


class Espeak:
    """Synthesis of single sentences into memory."""

    RETRIEVAL, UTF8 = 1, 1
    SPEED, PITCH, RANGE = 1, 3, 4

    def __init__(self):
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate = self._library.espeak_Initialize(self.RETRIEVAL, 0, data, 0)
        if self.rate <= 0:
            raise RuntimeError(f"eSpeak NG did not start (data in {data.decode()})")
        self._pieces: list[np.ndarray] = []
        signature = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = signature(self._collect)  # the library does not keep it alive
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int, spread: int):
        """Samples in [-1, 1) at `self.rate` Hz; speed in words per minute."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}")
        for parameter, value in (
            (self.SPEED, speed),
            (self.PITCH, pitch),
            (self.RANGE, spread),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        raw = text.lower().encode()
        size = ctypes.c_size_t(len(raw) + 1)
        self._library.espeak_Synth(raw, size, 0, 0, 0, self.UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._pieces) / 32768


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Different sentences of the grammar, in random order."""
    found: dict[str, None] = {}
    while len(found) < count:
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
        words = pattern.split()
        for i, word in enumerate(words):
            if word.startswith("{"):
                choices = SLOTS[word[1:-1]]
                words[i] = choices[rng.integers(len(choices))]
        found[" ".join(words)] = None
    return list(found)


def record(espeak: Espeak, rng: np.random.Generator, text: str, voice: str):
    """One utterance at RATE, with silence around it, some noise, and any loudness."""
    wave = espeak.say(
        text,
        voice,
        speed=int(rng.integers(130, 210)),
        pitch=int(rng.integers(25, 75)),
        spread=int(rng.integers(30, 70)),
    )
    wave = resample_poly(wave, RATE, espeak.rate)
    wave *= rng.uniform(0.3, 0.9) / np.abs(wave).max()
    before, after = (int(rng.uniform(0.05, 0.25) * RATE) for _ in range(2))
    wave = np.pad(wave, (before, after))
    wave += rng.normal(0, 10 ** rng.uniform(-3.5, -2.0), len(wave))
    return np.clip(wave, -1, 1)


def make(out: Path, seed: int, scale: float) -> None:
    """Write all splits below `out`/LibriSpeech."""
    rng = np.random.default_rng(seed)
    espeak = Espeak()
    counts = {name: max(1, round(n * scale)) for name, n in SPLITS.items()}
    texts = iter(sentences(rng, sum(counts.values())))
    for split, count in counts.items():
        seconds = 0.0
        for i in track(range(count), description=f"speaking {split}"):
            # a chapter is one voice's; the speakers' numbers go on over the splits
            chapter, number = divmod(i, CHAPTER)
            voice = i % len(VOICES)
            speaker = 100 * (1 + list(SPLITS).index(split)) + voice
            name = f"{speaker}-{chapter + 1}-{number:04d}"
            folder = out / "LibriSpeech" / split / f"{speaker}" / f"{chapter + 1}"
            folder.mkdir(parents=True, exist_ok=True)
            text = next(texts)
            wave = record(espeak, rng, text, VOICES[voice])
            soundfile.write(folder / f"{name}.flac", wave, RATE, subtype="PCM_16")
            with (folder / f"{speaker}-{chapter + 1}.trans.txt").open("a") as lines:
                lines.write(f"{name} {text}\n")
            seconds += len(wave) / RATE
        print(f"{split}: {count} utterances, {seconds / 60:.1f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the number of utterances"
    )
    args = parser.parse_args()
    # make it beside its place, so that an interrupted run leaves nothing half made
    part = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    make(part, args.seed, args.scale)
    if args.out.exists():
        shutil.rmtree(args.out)
    part.rename(args.out)


if __name__ == "__main__":
    main()
