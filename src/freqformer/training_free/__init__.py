"""What a trained dense model gets without training: the dials, and the preset behind them."""
