"""Other ways of spending the same real rollouts, to compare with."""
