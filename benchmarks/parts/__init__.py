"""The parts of the engine's benchmark: each module has ``run(options, limits)``, which returns tables."""
