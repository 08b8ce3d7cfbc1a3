"""Reading a corpus: layouts, damaged files, tokens."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

LOCAL = Path(__file__).parents[2] / "egs/librispeech/local"


def script(name: str, *args) -> subprocess.CompletedProcess:
    command = [sys.executable, str(LOCAL / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def corpus(root: Path, count: int = 30) -> Path:
    """`count` utterances of noise in each of three splits."""
    rng = np.random.default_rng(0)
    for split in ("tr", "dv", "ts"):
        folder = root / "LibriSpeech" / split / "1" / "1"
        folder.mkdir(parents=True)
        names = [f"{split}-1-{i:04d}" for i in range(count)]
        for name in names:
            soundfile.write(folder / f"{name}.flac", rng.uniform(-0.1, 0.1, 8000), 16000)
        (folder / "1-1.trans.txt").write_text("".join(f"{n} A BC\n" for n in names))
    return root


def data(root: Path, out: Path, **options):
    options = {"train_sets": "tr", "valid_sets": "dv", "test_sets": "ts", **options}
    words = [word for k, v in options.items() for word in (f"--{k}", *str(v).split())]
    return script("data.py", "--corpus", root, "--datadir", out, *words)


def test_layout_with_and_without_the_top_folder(tmp_path):
    root = corpus(tmp_path / "c")
    for i, top in enumerate((root, root / "LibriSpeech")):
        result = data(top, tmp_path / f"data{i}")
        assert result.returncode == 0, result.stderr
        lines = (tmp_path / f"data{i}/train/wav.scp").read_text().splitlines()
        assert len(lines) == 30
        assert Path(lines[0].split()[1]).is_absolute()
    text = (tmp_path / "data0/test/ts/text").read_text().splitlines()
    assert text[0] == "ts-1-0000 A BC"
    speakers = (tmp_path / "data0/valid/utt2spk").read_text().splitlines()
    assert speakers[0] == "dv-1-0000 dv"


def test_few_damaged_files_are_skipped_and_named_many_are_an_error(tmp_path):
    root = corpus(tmp_path / "c")
    flacs = sorted((root / "LibriSpeech/tr").rglob("*.flac"))
    flacs[0].write_bytes(b"")
    result = data(root, tmp_path / "data")
    assert result.returncode == 0, result.stderr
    assert "train: 29 utterances" in result.stdout
    assert f"skipped: {flacs[0]}" in "".join(result.stdout.splitlines())

    flacs[1].write_bytes(flacs[1].read_bytes()[:2000])  # truncated
    soundfile.write(flacs[2], np.zeros(0), 16000)  # no samples
    flacs[3].unlink()
    before = (tmp_path / "data/train/text").read_text()
    result = data(root, tmp_path / "data")
    assert result.returncode == 1
    assert "4 of 30 FLAC files cannot be used" in result.stderr
    assert all(str(path) in result.stderr for path in flacs[:4])
    assert (tmp_path / "data/train/text").read_text() == before
    soundfile.write(flacs[0], np.zeros((8000, 2)), 16000)
    soundfile.write(flacs[1], np.zeros(8000), 8000)
    result = data(root, tmp_path / "data", max_bad=0.2)
    assert result.returncode == 0
    assert "2 channels at 16000 Hz" in " ".join(result.stdout.split())
    assert "1 channels at 8000 Hz" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sets": "none"}, "has no split 'none'"),
        ({"train_sets": "tr tr"}, "occurs twice"),
    ],
)
def test_wrong_sets(tmp_path, options, message):
    result = data(corpus(tmp_path / "c", 2), tmp_path / "data", **options)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "data").exists()


def test_empty_split_and_missing_text(tmp_path):
    root = corpus(tmp_path / "c", 2)
    (root / "LibriSpeech/empty").mkdir()
    for sets in ("empty", "ts empty"):
        result = data(root, tmp_path / "data", test_sets=sets)
        assert result.returncode == 1
        assert "empty: no utterance found" in result.stderr
    (root / "LibriSpeech/tr/1/1/1-1.trans.txt").write_text("tr-1-0000\n")
    result = data(root, tmp_path / "data")
    assert "1-1.trans.txt:1: 'tr-1-0000' has no text" in result.stderr


def test_tokens(tmp_path):
    text = tmp_path / "text"
    text.write_text("u1 AB A\nu2 BA AC\n")
    result = script(
        "tokens.py", "--text", text, "--token_type", "char", "--out", tmp_path / "char"
    )
    assert result.returncode == 0, result.stderr
    tokens = (tmp_path / "char/tokens.txt").read_text().split()
    assert tokens == ["<blank>", "<unk>", "A", "<space>", "B", "C", "<sos/eos>"]

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ABCDEF"), 4)) for _ in range(40)]
    lines = [f"u{i} {' '.join(rng.choice(words, 5))}\n" for i in range(200)]
    text.write_text("".join(lines))
    bpe = ["--token_type", "bpe", "--nbpe", "40", "--out", tmp_path / "bpe"]
    result = script("tokens.py", "--text", text, *bpe)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "bpe/bpe.model").exists()
    tokens = (tmp_path / "bpe/tokens.txt").read_text().split()
    assert tokens[:2] == ["<blank>", "<unk>"]
    assert tokens[-1] == "<sos/eos>"
    assert not {"<s>", "</s>"} & set(tokens)
    result = script("tokens.py", "--text", text, *bpe[:2], "--nbpe", 2, *bpe[4:])
    assert result.returncode == 1
    assert "sentencepiece refused --nbpe 2" in result.stderr


def test_a_text_that_was_not_decoded(tmp_path):
    (tmp_path / "decode/dense/set").mkdir(parents=True)
    (tmp_path / "decode/measures.json").write_text('{"models": {"dense": {}}}')
    (tmp_path / "decode/dense/set/text").write_text("u1 A\n")
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/text").write_text("u1 A\nu2 B\n")
    folders = ["--decode", tmp_path / "decode", "--datadir", tmp_path / "data"]
    words = [*folders, "--out", tmp_path / "RESULTS.md", "--sets", "set"]
    result = script("score.py", *words)
    assert result.returncode == 1
    assert "score: 1 utterances were not decoded, u2 first" in result.stderr


def test_a_voice_that_espeak_has_not():
    espeak = runpy.run_path(str(LOCAL / "mini_corpus.py"))["Espeak"]()
    with pytest.raises(RuntimeError, match="eSpeak NG has no voice 'nobody'"):
        espeak.say("A", "nobody", 150, 50, 50)


def test_real_speech_goes_the_same_way(fsdd, tmp_path):
    make = [sys.executable, str(fsdd / "make_corpus.py"), str(tmp_path / "fsdd")]
    subprocess.run([*make, "--train", "2"], check=True, capture_output=True)
    result = data(
        tmp_path / "fsdd",
        tmp_path / "data",
        train_sets="train-digits",
        valid_sets="dev-digits",
        test_sets="test-digits",
    )
    assert result.returncode == 0, result.stderr
    assert "train: 12 utterances" in result.stdout
    assert "test/test-digits: 300 utterances" in result.stdout


def test_the_mini_corpus_is_deterministic_and_its_splits_are_disjoint(tmp_path):
    for name in ("one", "two"):
        result = script("mini_corpus.py", tmp_path / name, "--scale", "0.05")
        assert result.returncode == 0, result.stderr
    files = [
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*.*")
            if p.is_file()
        }
        for n in ("one", "two")
    ]
    assert files[0] == files[1]
    sentences = [
        {line.split(maxsplit=1)[1] for p in split.rglob("*.txt") for line in p.open()}
        for split in sorted((tmp_path / "one/LibriSpeech").iterdir())
    ]
    assert len(sentences) == 3
    assert len(set.union(*sentences)) == sum(map(len, sentences))
