"""Where compute lives: the implementations of `ports.Executor`. Called by `wiring.py` only."""

from penstock.executors.process import ProcessExecutor

__all__ = ["ProcessExecutor"]
