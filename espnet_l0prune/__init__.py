"""This package prunes ESPnet's Conformer recognizers, with L0 gates on their structures.

Importing the package makes ESPnet know its names: `encoder: l0_conformer`,
`model: l0_distill`, `optim: l0_adamw` and `sparsity_scheduler`. It imports neither
torch nor ESPnet.
"""

from espnet_l0prune.autoload import install

__version__ = "0.2.0"

install()
