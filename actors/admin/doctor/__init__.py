"""Doctor: what this host can do, what it cannot, why, and the remedy. It changes nothing on the host."""
