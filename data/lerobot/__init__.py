"""LeRobot directories: what is in them, what becomes of it in RLDS, and the embodiment record that
fits.
"""
