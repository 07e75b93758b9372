"""From the bytes of a scan to a square of grey levels, or the reason there is none."""
