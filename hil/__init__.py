"""What it really costs: devices, timing, runners, the audit and the live backends."""
