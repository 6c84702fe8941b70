"""Groups of commands; each file has `register(app)`. Nothing heavy is imported before a command is called."""
