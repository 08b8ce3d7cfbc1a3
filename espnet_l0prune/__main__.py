"""python -m espnet_l0prune"""

import sys

if not getattr(sys.flags, "safe_path", False):  # python -P, from 3.11 on
    del sys.path[0]  # the current folder: a torch.py in it is anybody's

from espnet_l0prune.cli import main

sys.exit(main())
