"""How it moves: the vector field, the integrator and the trajectory."""
