"""From files to batches: tables, folds, decoding, augmentation, order. No framework is imported here."""
