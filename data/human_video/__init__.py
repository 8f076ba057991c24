"""Video-only data: a folder of MP4 files with captions in RLDS form."""
