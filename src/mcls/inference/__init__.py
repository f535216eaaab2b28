"""A finished run put to use: load, evaluate, predict, compare, export."""
