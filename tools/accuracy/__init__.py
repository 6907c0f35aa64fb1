"""How far activations and their derivatives are from the true value, in units of the last place."""
