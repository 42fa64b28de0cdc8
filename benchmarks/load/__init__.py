"""The parts of `python -m benchmarks.service_load`: server, client, scenarios, engine, report."""
