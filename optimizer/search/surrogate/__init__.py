"""The guided sampler's model of cost and latency, and the choice of the next point."""
