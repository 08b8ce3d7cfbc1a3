"""Published models that no machine of ours can download: small ones of the same classes,
with random weights, on the disk."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DebertaConfig,
    DebertaModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
)

from espnet_l0prune.testing import s3prl, whisper

FAMILIES = {  # of s3prl's names
    **{"hubert": "hubert", "wavlm": "wavlm", "wavlablm": "wavlm"},
    **{"wav2vec2": "wav2vec2", "xls_r": "wav2vec2", "xlsr": "wav2vec2"},
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": len(WORDS),
}


def make(name: str) -> PreTrainedModel:
    """The small model of a published one's class."""
    if "mbart" in name:
        sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        layers = {"encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        return MBartForConditionalGeneration(MBartConfig(**sizes, **layers, **heads))
    if "deberta" in name:
        return DebertaModel(DebertaConfig(**SMALL))
    return BertModel(BertConfig(**SMALL))


def family_of(conf: dict[str, Any]) -> str | None:
    """The kind of self-supervised model that is the front end, if it can be pruned."""
    if conf.get("frontend") != "s3prl":
        return None
    upstream = conf["frontend_conf"]["frontend_conf"]["upstream"]
    return next(
        (kind for name, kind in FAMILIES.items() if upstream.startswith(name)), None
    )


def stand_in(conf: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A configuration with stand-ins for the published models that it names.

    Args:
        conf: of a training
        folder: where the stand-ins are, or are written

    Returns:
        the configuration, and the names of the models that were replaced
    """
    found, names = dict(conf), []
    for option, value in conf.items():
        if not isinstance(value, dict):
            continue
        new = dict(value)
        if name := value.get("model_name_or_path"):
            new["model_name_or_path"] = str(_saved(name, folder / Path(name).name))
            names.append(name)
        if name := value.get("whisper_model"):
            new |= whisper.publish(folder)
            names.append(f"Whisper {name}")
        if option == "frontend_conf" and (family := family_of(conf)):
            new |= s3prl.publish(
                folder, family, "large" in value["frontend_conf"]["upstream"]
            )
            new["layer"] = min(value.get("layer", -1), 1)
            new["multilayer_feature"] = bool(value.get("multilayer_feature"))
            names.append(value["frontend_conf"]["upstream"])
        if "lang_token_id" in value:  # of mBART's 250 000 tokens
            new["lang_token_id"] = WORDS.index("a")
        found[option] = new
    return found, list(dict.fromkeys(names))


def _saved(name: str, folder: Path) -> Path:
    if not folder.exists():
        torch.manual_seed(0)
        make(name).save_pretrained(folder)
        vocabulary = folder / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS), "utf-8")
        BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
        kind = (
            folder / "tokenizer_config.json"
        )  # else the model's own class is looked for
        settings = json.loads(kind.read_text("utf-8"))
        settings["tokenizer_class"] = "BertTokenizerFast"
        kind.write_text(json.dumps(settings), "utf-8")
    return folder
