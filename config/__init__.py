"""Settings and the project's error types. Imports nothing else of the project."""
