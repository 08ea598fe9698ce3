"""The steps of the pipeline, one a module: `python -m stages.NAME` runs one, alone or by way of `unseg.engine.distributed`."""

import sys

from unseg.core import console

if sys.argv[0] == "-m":  # Python is still looking for the stage, whose imports take seconds
    console.guard(importing=True)
