"""All that commands and notebooks import, for the process that the tests fork theirs from (`forked.py`)."""

import gc
from importlib import import_module

COMMANDS = ["clipviz.cli.main", "clipviz.methods.build", "clipviz.training.run", "clipviz.report", "clipviz.saliency"]
NOTEBOOKS = ["ipykernel.kernelapp", "matplotlib_inline.backend_inline", "clipviz.widgets", "clipviz.figures.static"]

gc.disable()  # looking for garbage would take a quarter of the time
for name in ["prepared", *COMMANDS, *NOTEBOOKS, "lightning_fabric", "tiny"]:
    import_module(name)
gc.freeze()  # all of it stays, and no process that is forked looks at it again
gc.enable()
