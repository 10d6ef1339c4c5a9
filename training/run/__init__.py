"""One run: its folder, its folds, what it trains on and what it leaves behind."""
