"""Formats durations for people."""


def format_duration(seconds: float) -> str:
    """Formats a number of seconds: 4000 -> "1 h 06 min"; 75 -> "1 min 15 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
