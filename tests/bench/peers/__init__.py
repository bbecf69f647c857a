"""What others would write: the contestants that the service is measured beside. Each is a process of its own."""
