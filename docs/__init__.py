"""The pages, and in `make/` what makes their pictures and the reference of config keys."""
