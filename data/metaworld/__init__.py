"""The Meta-World dataset: scripted expert episodes of `wam_jax.envs.metaworld` in RLDS form."""
