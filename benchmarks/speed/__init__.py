"""Three ways to the same purified images, side by side: as published, plain on the served network, and as served."""
