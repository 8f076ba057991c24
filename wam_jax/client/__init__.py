"""What a robot installs: the policy of a server, its chunks as actions, and a recorder.

Needs numpy, msgpack and websockets alone, and runs on Python 3.8.
"""
