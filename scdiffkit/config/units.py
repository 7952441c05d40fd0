"""Parse durations and amounts of memory such as "10m" and "8G"."""

from __future__ import annotations

from scdiffkit.errors import ConfigError


def parse_duration(text: str | float | None) -> float | None:
    """Convert "90", "90s", "10m" or "2h" to seconds. Numbers are returned unchanged. Raises ConfigError."""
    if text is None or isinstance(text, int | float):
        return text
    number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, "s")
    try:
        value = float(number) * {"s": 1, "m": 60, "h": 3600}[unit.lower()]
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"--max-time {text!r} is not a duration: give seconds, or 10m, or 2h.")
    return value


def parse_bytes(text: str | float | None) -> float | None:
    """Convert "8G", "2500M", "8GB" or "1e9" to bytes. Numbers are returned unchanged. Raises ConfigError."""
    if text is None or isinstance(text, int | float):
        return text
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    factor = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(number[-1:], 1.0)
    try:
        value = float(number.rstrip("KMGT")) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"--memory {text!r} is not auto, disk, ram or an amount of memory, such as 8G or 2500M.")
    return value
