"""How a step grows with ranks, rows and weights, and what that says of machines that are not here."""
