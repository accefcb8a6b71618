"""The logs of pipelines on disk: one bounded file each, across all runs, its lines numbered (contract.md section 8).

`files.py` is the Logs port; `numbering.py` holds the numbers, `bounds.py` keeps files short, `bells.py` wakes who
waits, `lines.py` makes clean lines. Wired by `wiring.py`; nobody else may touch the files, but for the processes that
append to them.
"""

from penstock.logfile.files import LogFiles

__all__ = ["LogFiles"]
