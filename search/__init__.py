"""Where the bits go: the REINFORCE agent, its exact and heuristic rivals, accuracy oracles."""
