#!/usr/bin/env python3
"""init.py tiny.en.pt init.pth: a checkpoint of whisper's, by ESPnet's names."""

import sys

import torch

NAMES = {"encoder.": "encoder.encoders.", "decoder.": "decoder.decoders."}

source, out = sys.argv[1:]
state = torch.load(source, map_location="cpu", weights_only=True)["model_state_dict"]
torch.save({NAMES[k[:8]] + k[8:]: v.float() for k, v in state.items()}, out)
