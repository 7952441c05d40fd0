"""From raw counts to training data."""
