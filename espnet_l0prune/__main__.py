"""python -m espnet_l0prune"""

import sys

from espnet_l0prune.cli import main

sys.exit(main())
