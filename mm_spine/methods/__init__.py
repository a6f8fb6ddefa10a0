"""What a method may choose: one row a method, and the functions that rows are made of."""
