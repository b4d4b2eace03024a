"""What engines measure of themselves: sampled, kept, shown, and told to Prometheus."""
