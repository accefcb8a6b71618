"""Penstock: steers long-lived data pipelines from their actual to their desired status.

``ARCHITECTURE.md`` beside this file is the map.
"""

__version__ = "0.1.0"
