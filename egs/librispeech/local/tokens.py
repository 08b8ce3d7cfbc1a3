#!/usr/bin/env python3
"""Make the token list, and the BPE model if asked for, from a transcript."""

import argparse
import collections
import sys
from pathlib import Path

import sentencepiece

BLANK, UNK, SOS_EOS, SPACE = "<blank>", "<unk>", "<sos/eos>", "<space>"


def characters(texts: list[str]) -> list[str]:
    """Characters by falling frequency, as ESPnet's own tokenizer lists them."""
    counts = collections.Counter(c for text in texts for c in text)
    ordered = sorted(counts, key=lambda c: (-counts[c], c))
    return [SPACE if c == " " else c for c in ordered]


def bpe(texts: list[str], size: int, prefix: Path) -> list[str]:
    """Train a unigram model at `prefix`.model, return its pieces."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        vocab_size=size,
        model_type="unigram",
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return [p for p in pieces if p not in ("<unk>", "<s>", "</s>")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="data/train/text")
    parser.add_argument("--token_type", choices=("bpe", "char"), required=True)
    parser.add_argument("--nbpe", type=int, default=0, help="size of the BPE model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    lines = args.text.read_text("utf-8").splitlines()
    texts = [line.partition(" ")[2] for line in lines]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.token_type == "bpe":
        try:
            tokens = bpe(texts, args.nbpe, args.out / "bpe")
        except RuntimeError as e:
            sys.exit(
                f"tokens: sentencepiece refused --nbpe {args.nbpe}: "
                f"{str(e).splitlines()[-1]} Choose another size, or --token_type char."
            )
    else:
        tokens = characters(texts)
    listing = [BLANK, UNK, *tokens, SOS_EOS]
    (args.out / "tokens.txt").write_text("".join(f"{t}\n" for t in listing), "utf-8")
    print(f"{args.out / 'tokens.txt'}: {len(listing)} tokens")


if __name__ == "__main__":
    main()
