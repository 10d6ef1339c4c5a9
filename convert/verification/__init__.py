"""The proof that an artefact predicts as its checkpoint does."""
