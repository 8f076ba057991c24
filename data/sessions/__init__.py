"""Recordings of robots as RLDS episodes; `data.from_sessions` is its command."""
