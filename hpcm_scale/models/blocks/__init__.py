"""The layers that networks are made of, one kind a module."""
