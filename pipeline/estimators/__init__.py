"""q(theta given x), and what its weights say about the evidence."""
