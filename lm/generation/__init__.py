"""Generation with a trained model: from logits to tokens, and from tokens to characters."""
