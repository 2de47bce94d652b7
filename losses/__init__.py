"""Predictions to numbers and labels: pure functions of tensors, and small modules that hold their state."""
