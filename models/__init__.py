"""Everything that is mathematics at inference: classifiers, purifiers, checkpoints and the catalog."""
