"""Several processes that train as one: who started them, what they must agree on, what they send."""
