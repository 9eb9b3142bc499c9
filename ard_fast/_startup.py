"""Imported before anything else by the commands: torch, without the garbage collector.

Importing torch makes half a million objects that stay. The collector would go through them again and again, during the
imports and in the run: a third of the time until a command begins.
"""

import gc
import importlib
import sys

if "torch" not in sys.modules:
    gc.disable()
    importlib.import_module("torch")
    gc.freeze()
    gc.enable()
