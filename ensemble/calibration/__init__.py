"""From logits to calibrated probabilities: temperature scaling, calibration maps, reliability diagrams."""
