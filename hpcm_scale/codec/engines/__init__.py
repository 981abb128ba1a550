"""The engines that compute a model's networks for the codec: torch, or NumPy alone."""
