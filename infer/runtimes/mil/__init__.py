"""A reference evaluator of Core ML packages: reads a saved ML Program and executes its operations on the CPU."""
