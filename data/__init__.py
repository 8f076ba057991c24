"""Dataset builders and tools; makes datasets that `wam_jax.data` reads. Never imported by
`wam_jax`.
"""
