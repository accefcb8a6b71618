"""The programs that are measured beside each other, each behind the same small interface."""
