"""A synthetic data set of documents, in 17 layouts."""
