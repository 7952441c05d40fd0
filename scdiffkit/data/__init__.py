"""Prepared cells and their conditions as the models take them, and how they are split."""
