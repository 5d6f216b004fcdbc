"""What operators see of a mirror, and what they may have it do."""
