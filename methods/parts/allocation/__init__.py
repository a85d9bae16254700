"""How much of each matrix a compression keeps: what a ratio means, and who decides."""
