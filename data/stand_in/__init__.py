"""Stand-ins for what is too large to have at hand: README.md."""
