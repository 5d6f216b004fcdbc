"""Real S3 servers as processes on loopback, and a plain client to look into them."""
