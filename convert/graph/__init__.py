"""The torch modules that are exported: networks, views, whole ensembles."""
