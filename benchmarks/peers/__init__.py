"""The same purifiers behind other servers: LitServe and Ray Serve, each with its own dynamic batching."""
