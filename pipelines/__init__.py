"""train -> compare -> export -> prove -> gate -> promote, and the `stride` command. Nothing imports this room."""
