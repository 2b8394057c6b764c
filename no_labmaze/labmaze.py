"""Stands in for labmaze, which dm_control asks for and only the mazes of dm_control.locomotion use."""

raise ImportError("labmaze has no wheels for Python 3.13 and later; dm_control.locomotion needs Python 3.11 or 3.12")
