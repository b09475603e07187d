"""What an adapter costs: parameters, FLOPs, latency, memory. Counted exactly where they can be, else measured."""
