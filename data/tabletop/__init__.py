"""The tabletop dataset: expert episodes of `wam_jax.envs.tabletop` in RLDS form."""
