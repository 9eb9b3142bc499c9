"""Imported before anything else by the commands: torch, without the garbage collector.

Importing torch makes half a million objects that stay. The collector would go through them again and again, during the
imports and in the run: a third of the time until a command begins. A program that imports a command's module is left
alone.
"""

import gc
import importlib
import sys
from pathlib import Path

_program = Path(sys.argv[0] if sys.argv else "")
if "torch" not in sys.modules and (_program.stem == "ard-fast" or _program.parent.name == "ard_fast"):
    gc.disable()
    importlib.import_module("torch")
    gc.freeze()
    gc.enable()
