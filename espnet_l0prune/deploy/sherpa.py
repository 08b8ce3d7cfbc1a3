"""A finished model is written for sherpa-onnx, a runtime for phones and servers.

The folder holds all that decoding needs. It knows neither ESPnet nor this package.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_l0prune.core.files import check_folder, new_folder
from espnet_l0prune.core.steps import Step, how_long, quiet
from espnet_l0prune.core.text import in_markdown
from espnet_l0prune.deploy.card import About, load_finished
from espnet_l0prune.deploy.exports.onnx import data_of, require_onnx
from espnet_l0prune.deploy.exports.sherpa import Route, route_of, write_model

MODEL, TOKENS, README, REPORT = "model.onnx", "tokens.txt", "README.md", "sherpa.json"
FILES = (REPORT, MODEL, data_of(Path(MODEL)).name, TOKENS, README)
BLANK, SPACE = "<blk>", "\u2581"
JOINED = ("bpe", "char")  # token types whose tokens are joined without spaces
APART = ("word", "phn")
DROPPED = ("SIL", "</s>")  # by the runtime, which has models where they are no text
TAKEN = (BLANK, "<eps>", "<blank>")  # names that mean the blank there
TEXT = """\
# {name}

A recognizer that ESPnet trained and espnet_l0prune exported, for
[sherpa-onnx](https://k2-fsa.github.io/sherpa/onnx/). {int8}It decodes by the best token
of the CTC in each frame.

## Use

Python (`pip install sherpa-onnx`):

```python
import wave

import numpy as np
import sherpa_onnx

recognizer = sherpa_onnx.OfflineRecognizer.{function}(
    model="{model}", tokens="{tokens}"
)
with wave.open("speech.wav") as file:  # of 16 bits
    rate, channels = file.getframerate(), file.getnchannels()
    samples = np.frombuffer(file.readframes(-1), np.int16) / np.float32(32768)
stream = recognizer.create_stream()
stream.accept_waveform(rate, samples[::channels])  # the first channel
recognizer.decode_stream(stream)
print(stream.result.text)
```

Command line (`pip install sherpa-onnx sherpa-onnx-bin`):

```sh
sherpa-onnx-offline --{option}={model} --tokens={tokens} speech.wav
```

Android, iOS, Raspberry Pi and others: take sherpa-onnx's build for the device, and set
`{field}.model` and `tokens` of its offline model's configuration to these two files.

## What differs from ESPnet

{differs} A language model and the attention decoder, if there was one, are not used.

## What it hears

One channel at 16 kHz. What else there may be, as tried with sherpa-onnx 2.0.1:

- Another rate: the runtime converts it. At 8 kHz the upper half of the band is missing,
  and more words are wrong.
- Two channels: the command line takes the first.
- An empty file, 0.1 s or silence: an empty text.
- A file of many minutes: time and memory grow with the square of the length, and where
  memory is short, the program ends with an error. Split long audio first, by the
  runtime's voice activity detector, say.
"""


@dataclass
class SherpaExport:
    """A `SherpaExport` says what was written; sherpa.json holds it.

    Attributes:
        route: the function of sherpa-onnx's Python package that loads the model
        differs: what is not as in ESPnet
        int8: whether matrix products are quantized
        verified: how close the graph is to the experiment's model
    """

    route: str
    differs: str
    int8: bool
    verified: str


def export_sherpa(
    experiment: Path,
    checkpoint: str,
    out: Path,
    about: About,
    force: bool = False,
    int8: bool = False,
    step: Step = quiet,
) -> SherpaExport:
    """Write a folder from which sherpa-onnx decodes; or nothing.

    Args:
        experiment: the experiment's folder; the model has no gates
        checkpoint: the name of the checkpoint to export
        out: the folder to write
        about: what the model is called
        force: whether to replace an earlier export
        int8: whether to quantize the matrix products
        step: is called with the name of each step as it begins

    Raises:
        ImportError: a package that writes graphs is not installed
        ValueError: gates; a model that sherpa-onnx cannot run; a graph that computes
            something else; an `out` that exists without `force`, or that is no earlier
            export; files that are missing or damaged
        OSError: `out` cannot be written
    """
    _check_free(out, force)
    require_onnx()
    step(f"loading {experiment}: {how_long(experiment / checkpoint)}")
    model, args = load_finished(experiment, checkpoint)
    route = route_of(model)
    tokens = tokens_of(args.token_list, args.token_type)
    out = out.resolve()  # a link to a folder is kept
    with new_folder(out, lambda: _check_free(out, force)) as folder:
        step("writing the graph, and comparing it")
        verified = write_model(route, folder / MODEL, int8)
        step(f"writing {out}")
        report = SherpaExport(route.function, route.differs, int8, verified)
        (folder / TOKENS).write_text(tokens, "utf-8")
        (folder / README).write_text(_readme(about, route, int8), "utf-8")
        (folder / REPORT).write_text(json.dumps(vars(report), indent=1), "utf-8")
    return report


def _check_free(out: Path, force: bool) -> None:
    check_folder(out, force, "export", REPORT, FILES)


def tokens_of(token_list: Sequence[str], token_type: str) -> str:
    """Return what tokens.txt holds: in each line a token and its number.

    Args:
        token_list: ESPnet's, which begins with the blank
        token_type: ESPnet's kind of tokens

    Raises:
        ValueError: tokens that the runtime would join to another text
    """
    if token_type not in (*JOINED, *APART):
        raise ValueError(
            f"token_type is {token_type!r}; expected one of "
            f"{', '.join((*JOINED, *APART))}, whose texts sherpa-onnx can join"
        )
    written = [BLANK]
    for token in token_list[1:]:
        if token in (*TAKEN, *DROPPED) or len(token.split()) != 1:
            raise ValueError(
                f"token_list has the token {token!r}, which sherpa-onnx does not take as "
                "text; expected a model with another token_list"
            )
        shown = SPACE if token == "<space>" else token
        written.append(SPACE + shown if token_type in APART else shown)
    return "".join(f"{token} {i}\n" for i, token in enumerate(written))


def _readme(about: About, route: Route, int8: bool) -> str:
    field = route.function.removeprefix("from_").removesuffix("_ctc")
    return TEXT.format(
        name=in_markdown(about.name),
        int8="Its matrix products are in int8. " if int8 else "",
        function=route.function,
        option=route.option,
        field=field,
        model=MODEL,
        tokens=TOKENS,
        differs=route.differs,
    )
