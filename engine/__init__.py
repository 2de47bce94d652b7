"""The one training loop and what it needs, and what a run's directory holds."""
