"""One module per table printed; each also writes JSON."""
