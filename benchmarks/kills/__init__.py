"""A training run that is killed again and again against one that nobody touches."""
