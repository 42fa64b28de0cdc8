"""The evaluation plans that ship with the package, one TOML file each."""
