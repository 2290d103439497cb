"""What a device knows: errors, targets, sessions, latency, memory, and the report schema. Never imports torch."""
