"""Video-only data: a folder of captioned videos in RLDS form."""
