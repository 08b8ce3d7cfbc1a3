"""This file is run by `python -m espnet_l0prune`."""

import sys

if not getattr(sys.flags, "safe_path", False):  # python -P sets it, from 3.11 on
    del sys.path[0]  # the current folder, which may hold anybody's torch.py

from espnet_l0prune.cli import main

sys.exit(main())
