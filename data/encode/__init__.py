"""Frozen encoders over a dataset's windows; `python -m data.encode` is the command."""
