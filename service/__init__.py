"""The running microservice: HTTP in, a purified classification out. Knows models, never training."""
