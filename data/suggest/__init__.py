"""A record proposed for an RLDS dataset; `python -m data.suggest` is the command."""
